//! Exponentials over slices: branch-free, so that the compiler turns the loops into vectors.

use crate::simd::Simd;

/// a · b + c, in one rounding where the instruction set has that.
#[inline(always)]
fn fma<S: Simd>(a: f32, b: f32, c: f32) -> f32 {
    if S::FMA { a.mul_add(b, c) } else { a * b + c }
}

/// 1.5 · 2^23: adding it leaves the nearest integer in the low bits.
pub(crate) const EXP_MAGIC: f32 = 12_582_912.0;
/// Above, e^x stays what it is here.
pub(crate) const EXP_MOST: f32 = 88.0;
/// Below, e^x counts as 0.
pub(crate) const EXP_LEAST: f32 = -87.3;
/// −ln 2 in two parts, the first of few bits.
pub(crate) const EXP_LN2: [f32; 2] = [-355.0 / 512.0, 2.121_944_4e-4];
/// (e^r − 1 − r) / r², the highest power first.
pub(crate) const EXP_TERMS: [f32; 6] =
    [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// e^x to about 1e-7 of itself; 0 below −87.3, e^88 above 88; exactly 1 at 0.
///
/// Cody and Waite's reduction by ln 2 in two parts, then the polynomial of Cephes' `expf`.
#[inline(always)]
pub(crate) fn exp<S: Simd>(x: f32) -> f32 {
    let kept = if x > EXP_MOST { EXP_MOST } else { x };
    let shifted = fma::<S>(kept, std::f32::consts::LOG2_E, EXP_MAGIC);
    let n = shifted - EXP_MAGIC;
    let r = fma::<S>(n, EXP_LN2[1], fma::<S>(n, EXP_LN2[0], kept));
    let mut p = EXP_TERMS[0];
    for term in &EXP_TERMS[1..] {
        p = fma::<S>(p, r, *term);
    }
    let value = fma::<S>(p * r, r, r) + 1.0;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    if x < EXP_LEAST { 0.0 } else { value * power }
}

/// x[i] = e^(x[i] · factor + offset)
#[inline(always)]
pub(crate) unsafe fn exp_all<S: Simd>(x: &mut [f32], factor: f32, offset: f32) {
    let whole = x.len() / S::LANES * S::LANES;
    // SAFETY: the instruction set is the caller's; whole vectors inside the slice.
    unsafe {
        for at in (0..whole).step_by(S::LANES) {
            let p = x.as_mut_ptr().add(at);
            S::store(p, S::exp(S::fma(S::load(p), S::splat(factor), S::splat(offset))));
        }
    }
    for value in &mut x[whole..] {
        *value = exp::<S>(fma::<S>(*value, factor, offset));
    }
}
