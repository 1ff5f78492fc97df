//! Eight lanes: AVX2 with FMA and F16C, and the same with AVX-VNNI.

use core::arch::asm;
use core::arch::x86_64::*;

use super::Simd;
use crate::math::{EXP_LEAST, EXP_LN2, EXP_MAGIC, EXP_MOST, EXP_TERMS};

#[derive(Clone, Copy)]
pub struct Avx2;

#[derive(Clone, Copy)]
pub struct Avx2Vnni;

/// What the two have in common: everything but the products.
macro_rules! common {
    () => {
        const LANES: usize = 8;
        const ACTS: usize = 4;
        const FMA: bool = true;
        type I = __m256i;
        type F = __m256;

        #[inline(always)]
        unsafe fn load_i(p: *const u8) -> __m256i {
            // SAFETY: the caller's, here and below.
            unsafe { _mm256_loadu_si256(p.cast()) }
        }
        #[inline(always)]
        unsafe fn store_i(p: *mut u8, v: __m256i) {
            unsafe { _mm256_storeu_si256(p.cast(), v) }
        }
        #[inline(always)]
        unsafe fn splat_i(v: i32) -> __m256i {
            unsafe { _mm256_set1_epi32(v) }
        }
        #[inline(always)]
        unsafe fn low_nibbles(v: __m256i) -> __m256i {
            unsafe { _mm256_and_si256(v, _mm256_set1_epi8(15)) }
        }
        #[inline(always)]
        unsafe fn high_nibbles(v: __m256i) -> __m256i {
            unsafe { _mm256_and_si256(_mm256_srli_epi16::<4>(v), _mm256_set1_epi8(15)) }
        }
        #[inline(always)]
        unsafe fn bit_to_16(v: __m256i, bit: usize) -> __m256i {
            unsafe {
                let moved = match bit {
                    0 => _mm256_slli_epi16::<4>(v),
                    1 => _mm256_slli_epi16::<3>(v),
                    2 => _mm256_slli_epi16::<2>(v),
                    3 => _mm256_slli_epi16::<1>(v),
                    4 => v,
                    5 => _mm256_srli_epi16::<1>(v),
                    6 => _mm256_srli_epi16::<2>(v),
                    _ => _mm256_srli_epi16::<3>(v),
                };
                _mm256_and_si256(moved, _mm256_set1_epi8(16))
            }
        }
        #[inline(always)]
        unsafe fn pair_to_16(v: __m256i, pair: usize) -> __m256i {
            unsafe {
                let moved = match pair {
                    0 => _mm256_slli_epi16::<4>(v),
                    1 => _mm256_slli_epi16::<2>(v),
                    2 => v,
                    _ => _mm256_srli_epi16::<2>(v),
                };
                _mm256_and_si256(moved, _mm256_set1_epi8(48))
            }
        }
        #[inline(always)]
        unsafe fn or(a: __m256i, b: __m256i) -> __m256i {
            unsafe { _mm256_or_si256(a, b) }
        }
        #[inline(always)]
        unsafe fn to_f(v: __m256i) -> __m256 {
            unsafe { _mm256_cvtepi32_ps(v) }
        }
        #[inline(always)]
        unsafe fn splat(v: f32) -> __m256 {
            unsafe { _mm256_set1_ps(v) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m256 {
            unsafe { _mm256_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: __m256) {
            unsafe { _mm256_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn load_f16(p: *const u16) -> __m256 {
            unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const u16) -> __m256 {
            unsafe {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            }
        }
        #[inline(always)]
        unsafe fn load_u8(p: *const u8) -> __m256 {
            unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()))) }
        }
        #[inline(always)]
        unsafe fn load_i8(p: *const i8) -> __m256 {
            unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))) }
        }
        #[inline(always)]
        unsafe fn mul(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn add(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn max(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_max_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn exp(v: __m256) -> __m256 {
            unsafe {
                let magic = _mm256_set1_ps(EXP_MAGIC);
                // In this order what is no number stays none.
                let kept = _mm256_min_ps(_mm256_set1_ps(EXP_MOST), v);
                let shifted = _mm256_fmadd_ps(kept, _mm256_set1_ps(std::f32::consts::LOG2_E), magic);
                let n = _mm256_sub_ps(shifted, magic);
                let r = _mm256_fmadd_ps(n, _mm256_set1_ps(EXP_LN2[0]), kept);
                let r = _mm256_fmadd_ps(n, _mm256_set1_ps(EXP_LN2[1]), r);
                let mut p = _mm256_set1_ps(EXP_TERMS[0]);
                for term in &EXP_TERMS[1..] {
                    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(*term));
                }
                let value = _mm256_fmadd_ps(_mm256_mul_ps(p, r), r, r);
                let value = _mm256_add_ps(value, _mm256_set1_ps(1.0));
                let power = _mm256_slli_epi32::<23>(_mm256_castps_si256(shifted));
                let power = _mm256_castsi256_ps(_mm256_add_epi32(power, _mm256_set1_epi32(0x3f80_0000)));
                let seen = _mm256_cmp_ps::<_CMP_NLT_UQ>(v, _mm256_set1_ps(EXP_LEAST));
                _mm256_and_ps(_mm256_mul_ps(value, power), seen)
            }
        }
        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn in_order(mut sum: __m256i) -> __m256i {
            // SAFETY: no instruction.
            unsafe { asm!("/* {0} */", inout(ymm_reg) sum, options(nomem, nostack, preserves_flags)) };
            sum
        }
        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn small_in_order(mut sum: __m256i) -> __m256i {
            // SAFETY: no instruction.
            unsafe { asm!("/* {0} */", inout(ymm_reg) sum, options(nomem, nostack, preserves_flags)) };
            sum
        }
        #[inline(always)]
        unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn quantize_16(p: *const f32, inverse: f32, out: *mut i8) -> i32 {
            unsafe {
                let (inverse, most) = (_mm256_set1_ps(inverse), _mm256_set1_epi32(127));
                let least = _mm256_set1_epi32(-127);
                let low = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(p), inverse));
                let high = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(p.add(8)), inverse));
                let low = _mm256_max_epi32(_mm256_min_epi32(low, most), least);
                let high = _mm256_max_epi32(_mm256_min_epi32(high, most), least);
                // Packing works inside halves of the vector: the quarters come out 0 2 1 3.
                let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(low, high));
                let (first, last) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
                _mm_storeu_si128(out.cast(), _mm_packs_epi16(first, last));
                let sums = _mm_madd_epi16(_mm_add_epi16(first, last), _mm_set1_epi16(1));
                let sums = _mm_add_epi32(sums, _mm_shuffle_epi32::<0b01_00_11_10>(sums));
                _mm_cvtsi128_si32(_mm_add_epi32(sums, _mm_shuffle_epi32::<0b10_11_00_01>(sums)))
            }
        }
        #[inline(always)]
        unsafe fn interleave(rows: &[*const u8; 16], words: usize, flip: u32, out: *mut u8) {
            unsafe {
                let flip = _mm256_set1_epi32(flip as i32);
                for four in (0..words).step_by(4) {
                    // A row in each half: transposing inside halves then brings all eight into order.
                    let pair = |row: usize| {
                        let half = |row: usize| _mm_loadu_si128(rows[row].add(four * 4).cast());
                        _mm256_xor_si256(_mm256_set_m128i(half(row + 4), half(row)), flip)
                    };
                    let (a, b, c, d) = (pair(0), pair(1), pair(2), pair(3));
                    let (low, high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
                    let (low_too, high_too) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
                    let out = out.add(four * 32).cast::<__m256i>();
                    _mm256_storeu_si256(out, _mm256_unpacklo_epi64(low, low_too));
                    _mm256_storeu_si256(out.add(1), _mm256_unpackhi_epi64(low, low_too));
                    _mm256_storeu_si256(out.add(2), _mm256_unpacklo_epi64(high, high_too));
                    _mm256_storeu_si256(out.add(3), _mm256_unpackhi_epi64(high, high_too));
                }
            }
        }
        #[inline(always)]
        unsafe fn prefetch(p: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        }
    };
}

// SAFETY: as the trait demands; `dispatch` checks avx2, fma and f16c.
unsafe impl Simd for Avx2 {
    common!();
    const BIAS: i32 = 0;
    const WORDS: usize = 2;
    type X = (__m256i, __m256i);
    /// Sums of two products, 16 bits each.
    type S = __m256i;

    #[inline(always)]
    unsafe fn load_x(p: *const i32) -> (__m256i, __m256i) {
        unsafe { (_mm256_set1_epi32(*p), _mm256_set1_epi32(*p.add(1))) }
    }
    /// `maddubs` wants one side unsigned. Where x < 0 the other side is −w − 1, the complement: the sum is short of |x|
    /// there, which `acc` starts with. (`sign` would be exact, but it takes a unit that multiplies.) Two products are at
    /// most 2 · 127 · 128 < 2^15.
    #[inline(always)]
    unsafe fn dot_signed(acc: __m256i, w: __m256i, (mask, magnitude): (__m256i, __m256i)) -> __m256i {
        unsafe { Self::dot_unsigned(acc, magnitude, _mm256_xor_si256(w, mask)) }
    }
    #[inline(always)]
    unsafe fn split(quants: &[i8; 32], out: *mut u32, step: usize) -> i32 {
        unsafe {
            let quants = _mm256_loadu_si256(quants.as_ptr().cast());
            let masks = _mm256_cmpgt_epi8(_mm256_setzero_si256(), quants);
            let magnitudes = _mm256_abs_epi8(quants);
            // Pairs of words, inside halves of the vector: columns 0 to 7 and 16 to 23, then the others.
            let pairs = [_mm256_unpacklo_epi32(masks, magnitudes), _mm256_unpackhi_epi32(masks, magnitudes)];
            for (i, pairs) in pairs.into_iter().enumerate() {
                for (half, two) in
                    [_mm256_castsi256_si128(pairs), _mm256_extracti128_si256::<1>(pairs)].into_iter().enumerate()
                {
                    let group = half * 4 + i * 2;
                    _mm_storel_epi64(out.add(group * step).cast(), two);
                    _mm_storel_epi64(out.add((group + 1) * step).cast(), _mm_unpackhi_epi64(two, two));
                }
            }
            let negative = _mm256_and_si256(magnitudes, masks);
            let sums = _mm256_sad_epu8(negative, _mm256_setzero_si256());
            let sums = _mm_add_epi64(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
            _mm_cvtsi128_si32(_mm_add_epi64(sums, _mm_unpackhi_epi64(sums, sums)))
        }
    }
    #[inline(always)]
    unsafe fn dot_unsigned(acc: __m256i, a: __m256i, b: __m256i) -> __m256i {
        unsafe {
            let pairs = _mm256_maddubs_epi16(a, b);
            _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }
    #[inline(always)]
    unsafe fn small_zero() -> __m256i {
        unsafe { _mm256_setzero_si256() }
    }
    #[inline(always)]
    unsafe fn dot_small(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
        unsafe { _mm256_add_epi16(acc, _mm256_maddubs_epi16(w, x)) }
    }
    #[inline(always)]
    unsafe fn widen(acc: __m256i, s: __m256i) -> __m256i {
        unsafe { _mm256_add_epi32(acc, _mm256_madd_epi16(s, _mm256_set1_epi16(1))) }
    }
}

// SAFETY: as the trait demands; `dispatch` checks avx2, fma, f16c and avxvnni.
unsafe impl Simd for Avx2Vnni {
    common!();
    const BIAS: i32 = 128;
    const WORDS: usize = 1;
    type X = __m256i;
    type S = __m256i;

    #[inline(always)]
    unsafe fn load_x(p: *const i32) -> __m256i {
        unsafe { Self::splat_i(*p) }
    }
    #[inline(always)]
    unsafe fn dot_signed(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
        unsafe { _mm256_dpbusd_avx_epi32(acc, w, x) }
    }
    #[inline(always)]
    unsafe fn dot_unsigned(acc: __m256i, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_dpbusd_avx_epi32(acc, a, b) }
    }
    #[inline(always)]
    unsafe fn small_zero() -> __m256i {
        unsafe { _mm256_setzero_si256() }
    }
    #[inline(always)]
    unsafe fn dot_small(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
        unsafe { _mm256_dpbusd_avx_epi32(acc, w, x) }
    }
    #[inline(always)]
    unsafe fn widen(acc: __m256i, s: __m256i) -> __m256i {
        unsafe { _mm256_add_epi32(acc, s) }
    }
}
