//! Sixteen lanes in plain Rust, with the biased weights and tile shape of AVX-512 VNNI: it proves that structure on any CPU.

use super::Simd;
use crate::float16::{bf16_to_f32, f16_to_f32};
use crate::math::exp;

const N: usize = 16;

#[derive(Clone, Copy)]
pub struct Portable;

#[inline(always)]
fn bytes(v: i32) -> [u8; 4] {
    v.to_le_bytes()
}

#[inline(always)]
fn each(v: [i32; N], f: impl Fn(u8) -> u8) -> [i32; N] {
    v.map(|lane| i32::from_le_bytes(bytes(lane).map(&f)))
}

#[inline(always)]
fn zip<T: Copy>(a: [T; N], b: [T; N], f: impl Fn(T, T) -> T) -> [T; N] {
    std::array::from_fn(|lane| f(a[lane], b[lane]))
}

// SAFETY: plain Rust.
unsafe impl Simd for Portable {
    const LANES: usize = N;
    const BIAS: i32 = 128;
    const ACTS: usize = 6;
    const FMA: bool = false;
    const WORDS: usize = 1;
    type I = [i32; N];
    type X = [i32; N];
    type F = [f32; N];
    type S = [i32; N];

    #[inline(always)]
    unsafe fn load_i(p: *const u8) -> [i32; N] {
        // SAFETY: the caller's, here and below.
        unsafe { p.cast::<[i32; N]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_i(p: *mut u8, v: [i32; N]) {
        unsafe { p.cast::<[i32; N]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn splat_i(v: i32) -> [i32; N] {
        [v; N]
    }
    #[inline(always)]
    unsafe fn load_x(p: *const i32) -> [i32; N] {
        unsafe { Self::splat_i(*p) }
    }
    #[inline(always)]
    unsafe fn dot_signed(acc: [i32; N], w: [i32; N], x: [i32; N]) -> [i32; N] {
        // SAFETY: plain Rust, here and below.
        unsafe { Self::dot_unsigned(acc, w, x) }
    }
    #[inline(always)]
    unsafe fn dot_unsigned(acc: [i32; N], w: [i32; N], x: [i32; N]) -> [i32; N] {
        std::array::from_fn(|lane| {
            let (w, x) = (bytes(w[lane]), bytes(x[lane]));
            acc[lane] + (0..4).map(|i| i32::from(w[i]) * i32::from(x[i] as i8)).sum::<i32>()
        })
    }
    #[inline(always)]
    unsafe fn small_zero() -> [i32; N] {
        [0; N]
    }
    #[inline(always)]
    unsafe fn dot_small(acc: [i32; N], w: [i32; N], x: [i32; N]) -> [i32; N] {
        unsafe { Self::dot_unsigned(acc, w, x) }
    }
    #[inline(always)]
    unsafe fn widen(acc: [i32; N], s: [i32; N]) -> [i32; N] {
        zip(acc, s, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn low_nibbles(v: [i32; N]) -> [i32; N] {
        each(v, |byte| byte & 15)
    }
    #[inline(always)]
    unsafe fn high_nibbles(v: [i32; N]) -> [i32; N] {
        each(v, |byte| byte >> 4)
    }
    #[inline(always)]
    unsafe fn bit_to_16(v: [i32; N], bit: usize) -> [i32; N] {
        each(v, |byte| ((byte >> bit) & 1) << 4)
    }
    #[inline(always)]
    unsafe fn pair_to_16(v: [i32; N], pair: usize) -> [i32; N] {
        each(v, |byte| ((byte >> (2 * pair)) & 3) << 4)
    }
    #[inline(always)]
    unsafe fn or(a: [i32; N], b: [i32; N]) -> [i32; N] {
        zip(a, b, |a, b| a | b)
    }
    #[inline(always)]
    unsafe fn to_f(v: [i32; N]) -> [f32; N] {
        v.map(|lane| lane as f32)
    }
    #[inline(always)]
    unsafe fn splat(v: f32) -> [f32; N] {
        [v; N]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; N] {
        unsafe { p.cast::<[f32; N]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: [f32; N]) {
        unsafe { p.cast::<[f32; N]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> [f32; N] {
        unsafe { p.cast::<[u16; N]>().read_unaligned() }.map(f16_to_f32)
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> [f32; N] {
        unsafe { p.cast::<[u16; N]>().read_unaligned() }.map(bf16_to_f32)
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> [f32; N] {
        unsafe { p.cast::<[u8; N]>().read_unaligned() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> [f32; N] {
        unsafe { p.cast::<[i8; N]>().read_unaligned() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn add(a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn max(a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn exp(v: [f32; N]) -> [f32; N] {
        v.map(exp::<Self>)
    }
    #[inline(always)]
    unsafe fn fma(a: [f32; N], b: [f32; N], c: [f32; N]) -> [f32; N] {
        std::array::from_fn(|lane| a[lane] * b[lane] + c[lane])
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}
