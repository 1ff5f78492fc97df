//! Products of one stretch of packed tiles with groups of activation rows: the register tiles.
//!
//! A result's bits depend on its weights and activations alone: blocks are summed in order whatever the tile's shape, so
//! that one row, many rows, and any number of threads agree.

mod floats;
mod integers;

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

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
    pub tiles: Range<usize>,
    pub x: *const u8,
    pub all: Groups,
    pub groups: Range<usize>,
    /// All results, (activation rows, rows).
    pub y: SharedMut<'a, f32>,
}

/// Columns that many groups of rows are taken through before the next ones: two tiles' weights of so many, and a group's
/// activations, stay in the first cache.
const SLICE: usize = 768;

/// One way to multiply `RT` tiles with `N` rows.
trait Multiply {
    /// Adds the products over columns `cols` to `sums`.
    unsafe fn tile<S: Simd, const RT: usize, const N: usize>(
        stretch: &Stretch,
        tiles: [*const u8; RT],
        x: *const u8,
        cols: &Range<usize>,
        ahead: bool,
        sums: &mut [[S::F; N]; RT],
    );
    /// The same products with weights that `unpack` has written, for many groups.
    type Unpacked: Multiply;
    /// Writes `tiles` tiles' weights of columns `cols` as `Unpacked` reads them, and returns a tile's size; 0 where the
    /// weights are read as they lie.
    unsafe fn unpack<S: Simd>(s: &Stretch, cols: &Range<usize>, panel: &mut Panel) -> usize;
}

/// What of a stretch a register tile is taken through.
struct Pass {
    group: usize,
    cols: Range<usize>,
    /// Whether the weights come from memory: the group is the first that they meet.
    ahead: bool,
}

/// Multiplies `RT` tiles from `tile` on with a group, and writes the results, or adds to them behind the first slice.
#[inline(always)]
unsafe fn tiles_by_group<S: Simd, M: Multiply, const RT: usize, const N: usize>(s: &Stretch, tile: usize, pass: &Pass) {
    // SAFETY: the stretch's tiles and groups exist; results of different tiles and rows lie apart.
    unsafe {
        let tiles: [*const u8; RT] = std::array::from_fn(|r| s.weights.wrapping_add((tile + r) * s.planes.tile));
        let out = |r: usize, a: usize| {
            let first = (tile + r) * S::LANES;
            s.y.part((pass.group * s.all.acts + a) * s.rows + first, S::LANES.min(s.rows - first))
        };
        let mut sums = [[S::splat(0.0); N]; RT];
        if pass.cols.start > 0 {
            for r in 0..RT {
                for a in 0..N {
                    let out = out(r, a);
                    let mut lanes = [0.0; 16];
                    lanes[..out.len()].copy_from_slice(out);
                    sums[r][a] = S::load(lanes.as_ptr());
                }
            }
        }
        M::tile::<S, RT, N>(s, tiles, s.x.add(s.all.offset(pass.group)), &pass.cols, pass.ahead, &mut sums);
        for r in 0..RT {
            for a in 0..N {
                let out = out(r, a);
                if out.len() == S::LANES {
                    S::store(out.as_mut_ptr(), sums[r][a]);
                } else {
                    let mut lanes = [0.0; 16];
                    S::store(lanes.as_mut_ptr(), sums[r][a]);
                    out.copy_from_slice(&lanes[..out.len()]);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn by_group<S: Simd, M: Multiply, const RT: usize, const N: usize>(s: &Stretch, pass: &Pass) {
    unsafe {
        let mut tile = s.tiles.start;
        if RT > 1 {
            while tile + RT <= s.tiles.end {
                tiles_by_group::<S, M, RT, N>(s, tile, pass);
                tile += RT;
            }
        }
        while tile < s.tiles.end {
            tiles_by_group::<S, M, 1, N>(s, tile, pass);
            tile += 1;
        }
    }
}

#[inline(always)]
unsafe fn one_pass<S: Simd, M: Multiply>(s: &Stretch, pass: &Pass) {
    unsafe {
        let rows = s.all.rows_of(pass.group);
        // What is known before compiling leaves out the shapes that a set doesn't have.
        if const { S::ACTS > 4 } {
            match rows {
                5 => return by_group::<S, M, 1, 5>(s, pass),
                6 => return by_group::<S, M, 2, 6>(s, pass),
                _ => {}
            }
        }
        match rows {
            // Four stretches of memory at a time come faster than one.
            1 => by_group::<S, M, 4, 1>(s, pass),
            2 => by_group::<S, M, 2, 2>(s, pass),
            3 => by_group::<S, M, 2, 3>(s, pass),
            4 if const { S::ACTS == 4 } => by_group::<S, M, 2, 4>(s, pass),
            4 => by_group::<S, M, 1, 4>(s, pass),
            _ => unreachable!("a group has {} rows at most", S::ACTS),
        }
    }
}

/// Two tiles' weights of a slice: whole bytes, and per block two scales and two minima at most, 16 rows each.
const PANEL: usize = 2 * 16 * SLICE / 32 * (32 + 16);

/// Room for unpacked weights.
#[repr(align(64))]
struct Panel([MaybeUninit<u8>; PANEL]);

/// Groups from which on unpacking is worth its while.
const UNPACK: usize = 3;

#[inline(always)]
unsafe fn all_groups<S: Simd, M: Multiply>(s: &Stretch) {
    let alone = s.groups.len() == 1;
    let mut panel = Panel([MaybeUninit::uninit(); PANEL]);
    // Tiles outermost: two tiles stay in the first cache while the groups pass by.
    let several = if s.all.rows == 1 { s.tiles.len() } else { 2 };
    for start in s.tiles.clone().step_by(several.max(1)) {
        let part = Stretch { tiles: start..s.tiles.end.min(start + several), groups: 0..0, ..*s };
        for from in (0..s.cols).step_by(if alone { s.cols } else { SLICE }) {
            let cols = from..if alone { s.cols } else { s.cols.min(from + SLICE) };
            // SAFETY: the caller's; the panel holds what the pass reads.
            unsafe {
                let size = if s.groups.len() < UNPACK { 0 } else { M::unpack::<S>(&part, &cols, &mut panel) };
                let planes = Planes { tile: size, ..Planes::default() };
                // Where the first tile's first column would be.
                let before = start * size + from * size / cols.len();
                let weights = panel.0.as_ptr().cast::<u8>().wrapping_sub(before);
                let unpacked = Stretch { planes: &planes, weights, tiles: part.tiles.clone(), groups: 0..0, ..part };
                for group in s.groups.clone() {
                    let pass = Pass { group, cols: cols.clone(), ahead: group == s.groups.start };
                    if size == 0 || s.all.rows_of(group) < S::ACTS {
                        one_pass::<S, M>(&part, &pass);
                    } else if const { S::ACTS == 4 } {
                        by_group::<S, M::Unpacked, 2, 4>(&unpacked, &Pass { ahead: false, ..pass });
                    } else {
                        by_group::<S, M::Unpacked, 2, 6>(&unpacked, &Pass { ahead: false, ..pass });
                    }
                }
            }
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
