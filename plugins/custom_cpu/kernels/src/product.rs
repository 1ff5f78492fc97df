//! Products of one stretch of packed tiles with groups of activation rows: the register tiles.
//!
//! A result's bits depend on its weights and activations alone: blocks are summed in order whatever the tile's shape, so
//! that one row, many rows, and any number of threads agree.

use std::marker::PhantomData;

use crate::activations::{BLOCK, BLOCK_BYTES, Groups};
use crate::format::Format;
use crate::instruction_set::{InstructionSet, dispatch};
use crate::layout::Planes;
use crate::shared::SharedMut;
use crate::simd::{Kernel, Simd};

/// Bytes ahead of the current weights that are asked for: past what the hardware's prefetcher follows over page ends.
const AHEAD: usize = 1536;

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

/// How a format's blocks are read.
trait Weights {
    /// Whole signed bytes, or unsigned ones below 64.
    const SIGNED: bool;
    /// Products that fit a narrow sum.
    const NARROW: usize;
    const MIN: bool;
    /// Two scales a block.
    const HALVES: bool;
    /// Bytes of a row's block, all planes together.
    const BYTES: usize;

    /// Columns 4·group to 4·group + 3 of block `b`.
    unsafe fn weight<S: Simd>(tile: *const u8, planes: &Planes, b: usize, group: usize) -> S::I;
    unsafe fn scale<S: Simd>(tile: *const u8, planes: &Planes, b: usize, half: usize) -> S::F;
    unsafe fn min<S: Simd>(tile: *const u8, planes: &Planes, b: usize, scale: S::F) -> S::F;
}

struct Bytes;

impl Weights for Bytes {
    const SIGNED: bool = true;
    const NARROW: usize = 8;
    const MIN: bool = false;
    const HALVES: bool = false;
    const BYTES: usize = 34;

    #[inline(always)]
    unsafe fn weight<S: Simd>(tile: *const u8, _: &Planes, b: usize, group: usize) -> S::I {
        // SAFETY: inside the tile, here and below.
        unsafe { S::load_i(tile.add((b * 8 + group) * S::LANES * 4)) }
    }
    #[inline(always)]
    unsafe fn scale<S: Simd>(tile: *const u8, planes: &Planes, b: usize, _: usize) -> S::F {
        unsafe { S::load_f16(tile.add(planes.scale + b * S::LANES * 2).cast()) }
    }
    #[inline(always)]
    unsafe fn min<S: Simd>(_: *const u8, _: &Planes, _: usize, scale: S::F) -> S::F {
        scale
    }
}

#[inline(always)]
unsafe fn nibble<S: Simd>(tile: *const u8, b: usize, group: usize) -> S::I {
    unsafe {
        let both = S::load_i(tile.add((b * 4 + group % 4) * S::LANES * 4));
        if group < 4 { S::low_nibbles(both) } else { S::high_nibbles(both) }
    }
}

#[inline(always)]
unsafe fn five<S: Simd>(tile: *const u8, planes: &Planes, b: usize, group: usize) -> S::I {
    unsafe {
        let high = S::load_i(tile.add(planes.high + b * S::LANES * 4));
        S::or(nibble::<S>(tile, b, group), S::bit_to_16(high, group))
    }
}

#[inline(always)]
unsafe fn super_scaled<S: Simd>(tile: *const u8, cells: usize, supers: usize, b: usize) -> S::F {
    unsafe {
        let scale = S::load_u8(tile.add(cells + b * S::LANES));
        S::mul(scale, S::load_f16(tile.add(supers + b / 8 * S::LANES * 2).cast()))
    }
}

/// Four or five bits with an f16 scale; the minimum is `OFFSET` · scale, or f16 where `OFFSET` is 0.
struct Simple<const FIVE: bool, const OFFSET: i32>;

impl<const FIVE: bool, const OFFSET: i32> Weights for Simple<FIVE, OFFSET> {
    const SIGNED: bool = false;
    const NARROW: usize = if FIVE { 4 } else { 8 };
    const MIN: bool = true;
    const HALVES: bool = false;
    const BYTES: usize = 18 + if FIVE { 4 } else { 0 } + if OFFSET == 0 { 2 } else { 0 };

    #[inline(always)]
    unsafe fn weight<S: Simd>(tile: *const u8, planes: &Planes, b: usize, group: usize) -> S::I {
        unsafe { if FIVE { five::<S>(tile, planes, b, group) } else { nibble::<S>(tile, b, group) } }
    }
    #[inline(always)]
    unsafe fn scale<S: Simd>(tile: *const u8, planes: &Planes, b: usize, _: usize) -> S::F {
        unsafe { S::load_f16(tile.add(planes.scale + b * S::LANES * 2).cast()) }
    }
    #[inline(always)]
    unsafe fn min<S: Simd>(tile: *const u8, planes: &Planes, b: usize, scale: S::F) -> S::F {
        unsafe {
            if OFFSET != 0 {
                S::mul(scale, S::splat(OFFSET as f32))
            } else {
                S::load_f16(tile.add(planes.min + b * S::LANES * 2).cast())
            }
        }
    }
}

/// Q4_K and Q5_K.
struct Super<const FIVE: bool>;

impl<const FIVE: bool> Weights for Super<FIVE> {
    const SIGNED: bool = false;
    const NARROW: usize = if FIVE { 4 } else { 8 };
    const MIN: bool = true;
    const HALVES: bool = false;
    const BYTES: usize = if FIVE { 22 } else { 18 };

    #[inline(always)]
    unsafe fn weight<S: Simd>(tile: *const u8, planes: &Planes, b: usize, group: usize) -> S::I {
        unsafe { if FIVE { five::<S>(tile, planes, b, group) } else { nibble::<S>(tile, b, group) } }
    }
    #[inline(always)]
    unsafe fn scale<S: Simd>(tile: *const u8, planes: &Planes, b: usize, _: usize) -> S::F {
        unsafe { super_scaled::<S>(tile, planes.scale, planes.super_scale, b) }
    }
    #[inline(always)]
    unsafe fn min<S: Simd>(tile: *const u8, planes: &Planes, b: usize, _: S::F) -> S::F {
        unsafe { S::mul(super_scaled::<S>(tile, planes.min, planes.super_min, b), S::splat(-1.0)) }
    }
}

/// Q6_K.
struct Six;

impl Weights for Six {
    const SIGNED: bool = false;
    const NARROW: usize = 2;
    const MIN: bool = true;
    const HALVES: bool = true;
    const BYTES: usize = 26;

    #[inline(always)]
    unsafe fn weight<S: Simd>(tile: *const u8, planes: &Planes, b: usize, group: usize) -> S::I {
        unsafe {
            let high = S::load_i(tile.add(planes.high + (b * 2 + group / 4) * S::LANES * 4));
            S::or(nibble::<S>(tile, b, group), S::pair_to_16(high, group % 4))
        }
    }
    #[inline(always)]
    unsafe fn scale<S: Simd>(tile: *const u8, planes: &Planes, b: usize, half: usize) -> S::F {
        unsafe {
            let scale = S::load_i8(tile.add(planes.scale + (b * 2 + half) * S::LANES).cast());
            S::mul(scale, S::load_f16(tile.add(planes.super_scale + b / 8 * S::LANES * 2).cast()))
        }
    }
    #[inline(always)]
    unsafe fn min<S: Simd>(_: *const u8, _: &Planes, _: usize, scale: S::F) -> S::F {
        unsafe { S::mul(scale, S::splat(-32.0)) }
    }
}

/// `RT` tiles times one group of `N` rows.
#[inline(always)]
unsafe fn integer_tile<S: Simd, W: Weights, const RT: usize, const N: usize>(
    tiles: [*const u8; RT],
    planes: &Planes,
    blocks: usize,
    x: *const u8,
) -> [[S::F; N]; RT] {
    // SAFETY: tiles and activations hold `blocks` blocks.
    unsafe {
        let mut sums = [[S::splat(0.0); N]; RT];
        let stride = if W::SIGNED { 32 } else { 16 } * S::LANES;
        let behind = W::BYTES * S::LANES - stride;
        for b in 0..blocks {
            let values = x.add(b * BLOCK_BYTES * N).cast::<i32>();
            let numbers = values.add(BLOCK / 4 * N).cast::<f32>();
            for tile in tiles {
                let mut ahead = 0;
                while ahead < stride {
                    S::prefetch(tile.wrapping_add(b * stride + AHEAD + ahead));
                    ahead += 64;
                }
                // What belongs to blocks lies behind the tile's weights, but is wanted from the first block on.
                let mut ahead = 0;
                while ahead < behind {
                    S::prefetch(tile.wrapping_add(planes.tile + planes.high + b * behind + ahead));
                    ahead += 64;
                }
            }
            let mut half = 0;
            while half < if W::HALVES { 2 } else { 1 } {
                let (first, last) = if W::HALVES { (half * 4, half * 4 + 4) } else { (0, 8) };
                let mut whole = [[S::splat_i(0); N]; RT];
                if W::SIGNED {
                    for a in 0..N {
                        let start = S::splat_i(*numbers.add(3 * N + a).cast::<i32>());
                        for r in 0..RT {
                            whole[r][a] = start;
                        }
                    }
                    for group in first..last {
                        let mut w = [S::splat_i(0); RT];
                        for r in 0..RT {
                            w[r] = W::weight::<S>(tiles[r], planes, b, group);
                        }
                        for a in 0..N {
                            let four = S::splat_i(*values.add(group * N + a));
                            for r in 0..RT {
                                whole[r][a] = S::in_order(S::dot_signed(whole[r][a], w[r], four));
                            }
                        }
                    }
                } else {
                    let mut group = first;
                    while group < last {
                        let mut narrow = [[S::small_zero(); N]; RT];
                        for group in group..group + W::NARROW {
                            let mut w = [S::splat_i(0); RT];
                            for r in 0..RT {
                                w[r] = W::weight::<S>(tiles[r], planes, b, group);
                            }
                            for a in 0..N {
                                let four = S::splat_i(*values.add(group * N + a));
                                for r in 0..RT {
                                    narrow[r][a] = S::small_in_order(S::dot_small(narrow[r][a], w[r], four));
                                }
                            }
                        }
                        for r in 0..RT {
                            for a in 0..N {
                                whole[r][a] = S::widen(whole[r][a], narrow[r][a]);
                            }
                        }
                        group += W::NARROW;
                    }
                }
                for r in 0..RT {
                    let scale = W::scale::<S>(tiles[r], planes, b, half);
                    for a in 0..N {
                        let both = S::mul(scale, S::splat(*numbers.add(a)));
                        sums[r][a] = S::fma(S::to_f(whole[r][a]), both, sums[r][a]);
                    }
                    if W::MIN {
                        let min = W::min::<S>(tiles[r], planes, b, scale);
                        for a in 0..N {
                            let second = *numbers.add(2 * N + a);
                            let sum = match (W::HALVES, half) {
                                (false, _) => *numbers.add(N + a),
                                (true, 0) => *numbers.add(N + a) - second,
                                (true, _) => second,
                            };
                            sums[r][a] = S::fma(min, S::splat(sum), sums[r][a]);
                        }
                    }
                }
                half += 1;
            }
        }
        sums
    }
}

/// What a float format's elements are loaded with.
trait Floats {
    const BYTES: usize;
    unsafe fn load<S: Simd>(p: *const u8) -> S::F;
}

struct Single;
struct Half;
struct Brain;

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

#[inline(always)]
unsafe fn float_tile<S: Simd, W: Floats, const RT: usize, const N: usize>(
    tiles: [*const u8; RT],
    cols: usize,
    x: *const u8,
) -> [[S::F; N]; RT] {
    // SAFETY: tiles and activations hold `cols` columns.
    unsafe {
        let x = x.cast::<f32>();
        let mut sums = [[S::splat(0.0); N]; RT];
        for col in 0..cols {
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
        sums
    }
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

struct Integers<W>(W);
struct FloatProducts<W>(W);

impl<W: Weights> Multiply for Integers<W> {
    const ONE_ROW: usize = 1;
    #[inline(always)]
    unsafe fn tile<S: Simd, const RT: usize, const N: usize>(
        stretch: &Stretch,
        tiles: [*const u8; RT],
        x: *const u8,
    ) -> [[S::F; N]; RT] {
        unsafe { integer_tile::<S, W, RT, N>(tiles, stretch.planes, stretch.cols / BLOCK, x) }
    }
}

impl<W: Floats> Multiply for FloatProducts<W> {
    /// One sum a row waits for its last addition: four tiles side by side keep the units busy.
    const ONE_ROW: usize = 4;
    #[inline(always)]
    unsafe fn tile<S: Simd, const RT: usize, const N: usize>(
        stretch: &Stretch,
        tiles: [*const u8; RT],
        x: *const u8,
    ) -> [[S::F; N]; RT] {
        unsafe { float_tile::<S, W, RT, N>(tiles, stretch.cols, x) }
    }
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
