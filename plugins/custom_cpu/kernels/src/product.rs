//! Products of one stretch of packed tiles with groups of activation rows: the register tiles.
//!
//! A result's bits depend on its weights and activations alone: blocks are summed in order whatever the tile's shape, so
//! that one row, many rows, and any number of threads agree.

mod floats;
mod integers;

use std::marker::PhantomData;

use crate::activations::Groups;
use crate::format::Format;
use crate::instruction_set::{InstructionSet, dispatch};
use crate::layout::Planes;
use crate::shared::SharedMut;
use crate::simd::{Kernel, Simd};
use floats::{Brain, FloatProducts, Half, Single};
use integers::{Bytes, Integers, Simple, Six, Super};

/// Tiles `tiles` of one matrix times groups `groups` of activations.
pub(crate) struct Stretch<'a> {
    pub format: Format,
    pub planes: &'a Planes,
    pub weights: *const u8,
    pub rows: usize,
    pub cols: usize,
    pub tiles: std::ops::Range<usize>,
    pub x: *const u8,
    pub all: Groups,
    pub groups: std::ops::Range<usize>,
    /// All results, (activation rows, rows).
    pub y: SharedMut<'a, f32>,
}

/// One way to multiply `RT` tiles with `N` rows.
trait Multiply {
    unsafe fn tile<S: Simd, const RT: usize, const N: usize>(
        stretch: &Stretch,
        tiles: [*const u8; RT],
        x: *const u8,
    ) -> [[S::F; N]; RT];
    /// Tiles taken together for one row, and for a full group.
    const ONE_ROW: usize;
}

/// Multiplies `RT` tiles from `tile` on with group `group`, and writes the results.
#[inline(always)]
unsafe fn tiles_by_group<S: Simd, M: Multiply, const RT: usize, const N: usize>(
    s: &Stretch,
    tile: usize,
    group: usize,
) {
    // SAFETY: the stretch's tiles and groups exist; results of different tiles and rows lie apart.
    unsafe {
        let tiles: [*const u8; RT] = std::array::from_fn(|r| s.weights.add((tile + r) * s.planes.tile));
        let sums = M::tile::<S, RT, N>(s, tiles, s.x.add(s.all.offset(group)));
        for (r, rows) in sums.iter().enumerate() {
            let first = (tile + r) * S::LANES;
            let count = S::LANES.min(s.rows - first);
            for (a, sum) in rows.iter().enumerate() {
                let out = s.y.part((group * s.all.acts + a) * s.rows + first, count);
                if count == S::LANES {
                    S::store(out.as_mut_ptr(), *sum);
                } else {
                    let mut lanes = [0.0; 16];
                    S::store(lanes.as_mut_ptr(), *sum);
                    out.copy_from_slice(&lanes[..count]);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn by_group<S: Simd, M: Multiply, const RT: usize, const N: usize>(s: &Stretch, group: usize) {
    unsafe {
        let mut tile = s.tiles.start;
        if RT > 1 {
            while tile + RT <= s.tiles.end {
                tiles_by_group::<S, M, RT, N>(s, tile, group);
                tile += RT;
            }
        }
        while tile < s.tiles.end {
            tiles_by_group::<S, M, 1, N>(s, tile, group);
            tile += 1;
        }
    }
}

#[inline(always)]
unsafe fn all_groups<S: Simd, M: Multiply>(s: &Stretch) {
    unsafe {
        let end = s.tiles.end;
        // Tiles outermost: two tiles stay in the first cache while the groups pass by.
        let mut start = s.tiles.start;
        while start < end {
            let several = if s.all.rows == 1 { end - start } else { 2 };
            let part = Stretch { tiles: start..end.min(start + several), groups: 0..0, ..*s };
            for group in s.groups.clone() {
                match s.all.rows_of(group) {
                    1 if M::ONE_ROW == 4 => by_group::<S, M, 4, 1>(&part, group),
                    1 => by_group::<S, M, 1, 1>(&part, group),
                    2 => by_group::<S, M, 1, 2>(&part, group),
                    3 => by_group::<S, M, 1, 3>(&part, group),
                    4 if S::ACTS == 4 => by_group::<S, M, 2, 4>(&part, group),
                    4 => by_group::<S, M, 1, 4>(&part, group),
                    5 if S::ACTS > 4 => by_group::<S, M, 1, 5>(&part, group),
                    _ if S::ACTS > 4 => by_group::<S, M, 2, 6>(&part, group),
                    _ => unreachable!("a group has {} rows at most", S::ACTS),
                }
            }
            start += several;
        }
    }
}

/// A stretch and how its format is multiplied: each compiled by itself.
struct Typed<'a, M>(Stretch<'a>, PhantomData<M>);

impl<M: Multiply> Kernel for Typed<'_, M> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        unsafe { all_groups::<S, M>(&self.0) }
    }
}

impl Stretch<'_> {
    /// # Safety
    /// The matrix was packed for `set`, the activations prepared for it, and both outlive the call.
    pub unsafe fn multiply(self, set: InstructionSet) {
        fn with<M: Multiply>(set: InstructionSet, stretch: Stretch) {
            dispatch(set, Typed::<M>(stretch, PhantomData));
        }
        match self.format {
            Format::F32 => with::<FloatProducts<Single>>(set, self),
            Format::F16 => with::<FloatProducts<Half>>(set, self),
            Format::BF16 => with::<FloatProducts<Brain>>(set, self),
            Format::Q8_0 => with::<Integers<Bytes>>(set, self),
            Format::Q4_0 => with::<Integers<Simple<false, -8>>>(set, self),
            Format::Q4_1 => with::<Integers<Simple<false, 0>>>(set, self),
            Format::Q5_0 => with::<Integers<Simple<true, -16>>>(set, self),
            Format::Q5_1 => with::<Integers<Simple<true, 0>>>(set, self),
            Format::Q4_K => with::<Integers<Super<false>>>(set, self),
            Format::Q5_K => with::<Integers<Super<true>>>(set, self),
            Format::Q6_K => with::<Integers<Six>>(set, self),
        }
    }
}
