//! Float products: F32, F16 and BF16 weights with activations as they are.

use std::ops::Range;

use super::{Multiply, Panel, Stretch};
use crate::simd::Simd;

/// What a float format's elements are loaded with.
pub(super) trait Floats {
    const BYTES: usize;
    unsafe fn load<S: Simd>(p: *const u8) -> S::F;
}

pub(super) struct Single;
pub(super) struct Half;
pub(super) struct Brain;

impl Floats for Single {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        unsafe { S::load(p.cast()) }
    }
}

impl Floats for Half {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        unsafe { S::load_f16(p.cast()) }
    }
}

impl Floats for Brain {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        unsafe { S::load_bf16(p.cast()) }
    }
}

pub(super) struct FloatProducts<W>(W);

impl<W: Floats> Multiply for FloatProducts<W> {
    type Unpacked = Self;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(_: &Stretch, _: &Range<usize>, _: &mut Panel) -> usize {
        0
    }

    #[inline(always)]
    unsafe fn tile<S: Simd, const RT: usize, const N: usize>(
        _: &Stretch,
        tiles: [*const u8; RT],
        x: *const u8,
        cols: &Range<usize>,
        _: bool,
        sums: &mut [[S::F; N]; RT],
    ) {
        // SAFETY: tiles and activations hold these columns.
        unsafe {
            let x = x.cast::<f32>();
            for col in cols.clone() {
                let mut w = [S::splat(0.0); RT];
                for r in 0..RT {
                    w[r] = W::load::<S>(tiles[r].add(col * S::LANES * W::BYTES));
                }
                for a in 0..N {
                    let value = S::splat(*x.add(col * N + a));
                    for r in 0..RT {
                        sums[r][a] = S::fma(w[r], value, sums[r][a]);
                    }
                }
            }
        }
    }
}
