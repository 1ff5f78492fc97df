//! Sixteen lanes: AVX-512 (F, BW, VL) with VNNI.

use core::arch::x86_64::*;

use super::Simd;
use crate::math::{EXP_LEAST, EXP_LN2, EXP_MAGIC, EXP_MOST, EXP_TERMS};

#[derive(Clone, Copy)]
pub struct Avx512Vnni;

// SAFETY: as the trait demands; `dispatch` checks avx512f, avx512bw, avx512vl and avx512vnni.
unsafe impl Simd for Avx512Vnni {
    const LANES: usize = 16;
    const BIAS: i32 = 128;
    const ACTS: usize = 6;
    const FMA: bool = true;
    const WORDS: usize = 1;
    type I = __m512i;
    type X = __m512i;
    type F = __m512;
    type S = __m512i;

    #[inline(always)]
    unsafe fn load_i(p: *const u8) -> __m512i {
        // SAFETY: the caller's, here and below.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store_i(p: *mut u8, v: __m512i) {
        unsafe { _mm512_storeu_si512(p.cast(), v) }
    }
    #[inline(always)]
    unsafe fn splat_i(v: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(v) }
    }
    #[inline(always)]
    unsafe fn load_x(p: *const i32) -> __m512i {
        unsafe { Self::splat_i(*p) }
    }
    #[inline(always)]
    unsafe fn dot_signed(acc: __m512i, w: __m512i, x: __m512i) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(acc, w, x) }
    }
    #[inline(always)]
    unsafe fn dot_unsigned(acc: __m512i, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(acc, a, b) }
    }
    #[inline(always)]
    unsafe fn small_zero() -> __m512i {
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn dot_small(acc: __m512i, w: __m512i, x: __m512i) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(acc, w, x) }
    }
    #[inline(always)]
    unsafe fn widen(acc: __m512i, s: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(acc, s) }
    }
    #[inline(always)]
    unsafe fn low_nibbles(v: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(v, _mm512_set1_epi8(15)) }
    }
    #[inline(always)]
    unsafe fn high_nibbles(v: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(_mm512_srli_epi16::<4>(v), _mm512_set1_epi8(15)) }
    }
    #[inline(always)]
    unsafe fn bit_to_16(v: __m512i, bit: usize) -> __m512i {
        unsafe {
            let moved = match bit {
                0 => _mm512_slli_epi16::<4>(v),
                1 => _mm512_slli_epi16::<3>(v),
                2 => _mm512_slli_epi16::<2>(v),
                3 => _mm512_slli_epi16::<1>(v),
                4 => v,
                5 => _mm512_srli_epi16::<1>(v),
                6 => _mm512_srli_epi16::<2>(v),
                _ => _mm512_srli_epi16::<3>(v),
            };
            _mm512_and_si512(moved, _mm512_set1_epi8(16))
        }
    }
    #[inline(always)]
    unsafe fn pair_to_16(v: __m512i, pair: usize) -> __m512i {
        unsafe {
            let moved = match pair {
                0 => _mm512_slli_epi16::<4>(v),
                1 => _mm512_slli_epi16::<2>(v),
                2 => v,
                _ => _mm512_srli_epi16::<2>(v),
            };
            _mm512_and_si512(moved, _mm512_set1_epi8(48))
        }
    }
    #[inline(always)]
    unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn to_f(v: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(v) }
    }
    #[inline(always)]
    unsafe fn splat(v: f32) -> __m512 {
        unsafe { _mm512_set1_ps(v) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m512) {
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> __m512 {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn exp(v: __m512) -> __m512 {
        unsafe {
            let magic = _mm512_set1_ps(EXP_MAGIC);
            // In this order what is no number stays none.
            let kept = _mm512_min_ps(_mm512_set1_ps(EXP_MOST), v);
            let shifted = _mm512_fmadd_ps(kept, _mm512_set1_ps(std::f32::consts::LOG2_E), magic);
            let n = _mm512_sub_ps(shifted, magic);
            let r = _mm512_fmadd_ps(n, _mm512_set1_ps(EXP_LN2[0]), kept);
            let r = _mm512_fmadd_ps(n, _mm512_set1_ps(EXP_LN2[1]), r);
            let mut p = _mm512_set1_ps(EXP_TERMS[0]);
            for term in &EXP_TERMS[1..] {
                p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(*term));
            }
            let value = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, r);
            let value = _mm512_add_ps(value, _mm512_set1_ps(1.0));
            let power = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted));
            let power = _mm512_castsi512_ps(_mm512_add_epi32(power, _mm512_set1_epi32(0x3f80_0000)));
            let seen = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(v, _mm512_set1_ps(EXP_LEAST));
            _mm512_maskz_mul_ps(seen, value, power)
        }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn quantize_16(p: *const f32, inverse: f32, out: *mut i8) -> i32 {
        unsafe {
            let quants = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(p), _mm512_set1_ps(inverse)));
            let quants = _mm512_max_epi32(_mm512_min_epi32(quants, _mm512_set1_epi32(127)), _mm512_set1_epi32(-127));
            _mm_storeu_si128(out.cast(), _mm512_cvtepi32_epi8(quants));
            _mm512_reduce_add_epi32(quants)
        }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}
