//! Four lanes: NEON, which every aarch64 CPU has.

use core::arch::aarch64::*;

use super::Simd;
use crate::float16::f16_to_f32;
use crate::math::exp;

#[derive(Clone, Copy)]
pub struct Neon;

/// Σ of each lane's four products; two products of 8 bits are at most 2 · 128 · 127 < 2^15.
#[inline(always)]
unsafe fn dot(acc: int32x4_t, w: int32x4_t, x: int32x4_t) -> int32x4_t {
    // SAFETY: NEON is there, here and below.
    unsafe {
        let (w, x) = (vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(x));
        let low = vmull_s8(vget_low_s8(w), vget_low_s8(x));
        let high = vmull_high_s8(w, x);
        vpadalq_s16(acc, vpaddq_s16(low, high))
    }
}

// SAFETY: as the trait demands.
unsafe impl Simd for Neon {
    const LANES: usize = 4;
    const BIAS: i32 = 0;
    const ACTS: usize = 4;
    const FMA: bool = true;
    const WORDS: usize = 1;
    type I = int32x4_t;
    type X = int32x4_t;
    type F = float32x4_t;
    type S = int32x4_t;

    #[inline(always)]
    unsafe fn load_i(p: *const u8) -> int32x4_t {
        unsafe { vreinterpretq_s32_u8(vld1q_u8(p)) }
    }
    #[inline(always)]
    unsafe fn store_i(p: *mut u8, v: int32x4_t) {
        unsafe { vst1q_u8(p, vreinterpretq_u8_s32(v)) }
    }
    #[inline(always)]
    unsafe fn splat_i(v: i32) -> int32x4_t {
        unsafe { vdupq_n_s32(v) }
    }
    #[inline(always)]
    unsafe fn load_x(p: *const i32) -> int32x4_t {
        unsafe { Self::splat_i(*p) }
    }
    #[inline(always)]
    unsafe fn dot_signed(acc: int32x4_t, w: int32x4_t, x: int32x4_t) -> int32x4_t {
        unsafe { dot(acc, w, x) }
    }
    /// NEON's product takes both sides signed: `a` below 128, which is all that is asked of it.
    #[inline(always)]
    unsafe fn dot_unsigned(acc: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        unsafe { dot(acc, a, b) }
    }
    #[inline(always)]
    unsafe fn small_zero() -> int32x4_t {
        unsafe { vdupq_n_s32(0) }
    }
    #[inline(always)]
    unsafe fn dot_small(acc: int32x4_t, w: int32x4_t, x: int32x4_t) -> int32x4_t {
        unsafe { dot(acc, w, x) }
    }
    #[inline(always)]
    unsafe fn widen(acc: int32x4_t, s: int32x4_t) -> int32x4_t {
        unsafe { vaddq_s32(acc, s) }
    }
    #[inline(always)]
    unsafe fn low_nibbles(v: int32x4_t) -> int32x4_t {
        unsafe { vreinterpretq_s32_u8(vandq_u8(vreinterpretq_u8_s32(v), vdupq_n_u8(15))) }
    }
    #[inline(always)]
    unsafe fn high_nibbles(v: int32x4_t) -> int32x4_t {
        unsafe { vreinterpretq_s32_u8(vshrq_n_u8::<4>(vreinterpretq_u8_s32(v))) }
    }
    #[inline(always)]
    unsafe fn bit_to_16(v: int32x4_t, bit: usize) -> int32x4_t {
        unsafe {
            let moved = vshlq_u8(vreinterpretq_u8_s32(v), vdupq_n_s8(4 - bit as i8));
            vreinterpretq_s32_u8(vandq_u8(moved, vdupq_n_u8(16)))
        }
    }
    #[inline(always)]
    unsafe fn pair_to_16(v: int32x4_t, pair: usize) -> int32x4_t {
        unsafe {
            let moved = vshlq_u8(vreinterpretq_u8_s32(v), vdupq_n_s8(4 - 2 * pair as i8));
            vreinterpretq_s32_u8(vandq_u8(moved, vdupq_n_u8(48)))
        }
    }
    #[inline(always)]
    unsafe fn or(a: int32x4_t, b: int32x4_t) -> int32x4_t {
        unsafe { vorrq_s32(a, b) }
    }
    #[inline(always)]
    unsafe fn to_f(v: int32x4_t) -> float32x4_t {
        unsafe { vcvtq_f32_s32(v) }
    }
    #[inline(always)]
    unsafe fn splat(v: f32) -> float32x4_t {
        unsafe { vdupq_n_f32(v) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> float32x4_t {
        unsafe { vld1q_f32(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: float32x4_t) {
        unsafe { vst1q_f32(p, v) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> float32x4_t {
        unsafe { vld1q_f32(p.cast::<[u16; 4]>().read_unaligned().map(f16_to_f32).as_ptr()) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> float32x4_t {
        unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p))) }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> float32x4_t {
        unsafe { vld1q_f32(p.cast::<[u8; 4]>().read_unaligned().map(f32::from).as_ptr()) }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> float32x4_t {
        unsafe { vld1q_f32(p.cast::<[i8; 4]>().read_unaligned().map(f32::from).as_ptr()) }
    }
    #[inline(always)]
    unsafe fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vmaxq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn exp(v: float32x4_t) -> float32x4_t {
        unsafe {
            let mut lanes = [0.0; 4];
            vst1q_f32(lanes.as_mut_ptr(), v);
            vld1q_f32(lanes.map(exp::<Self>).as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        unsafe { vfmaq_f32(c, a, b) }
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}
