//! Integer products: 8-bit activations with weights of four to eight bits.

use std::ops::Range;

use super::{Multiply, Panel, Stretch};
use crate::activations::{BLOCK, NUMBERS};
use crate::layout::Planes;
use crate::simd::Simd;

/// Bytes ahead of the current weights that are asked for: past what the hardware's prefetcher follows over page ends.
const AHEAD: usize = 768;

/// How a format's blocks are read.
pub(super) trait Weights {
    /// Whole signed bytes, or unsigned ones below 64.
    const SIGNED: bool;
    /// Products that fit a narrow sum.
    const NARROW: usize;
    const MIN: bool;
    /// Two scales a block.
    const HALVES: bool;
    /// Bytes of a row's block, all planes together.
    const BYTES: usize;
    /// The same, unpacked; itself where weights are whole bytes already.
    type Unpacked: Weights;
    const UNPACKS: bool = true;

    /// Columns 4·group to 4·group + 3 of block `b`.
    unsafe fn weight<S: Simd>(tile: *const u8, planes: &Planes, b: usize, group: usize) -> S::I;
    unsafe fn scale<S: Simd>(tile: *const u8, planes: &Planes, b: usize, half: usize) -> S::F;
    unsafe fn min<S: Simd>(tile: *const u8, planes: &Planes, b: usize, half: usize, scale: S::F) -> S::F;
}

/// Q8_0.
pub(super) struct Bytes;

impl Weights for Bytes {
    const SIGNED: bool = true;
    const NARROW: usize = 8;
    const MIN: bool = false;
    const HALVES: bool = false;
    const BYTES: usize = 34;
    type Unpacked = Self;
    const UNPACKS: bool = false;

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
    unsafe fn min<S: Simd>(_: *const u8, _: &Planes, _: usize, _: usize, scale: S::F) -> S::F {
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
pub(super) struct Simple<const FIVE: bool, const OFFSET: i32>;

impl<const FIVE: bool, const OFFSET: i32> Weights for Simple<FIVE, OFFSET> {
    const SIGNED: bool = false;
    const NARROW: usize = if FIVE { 4 } else { 8 };
    const MIN: bool = true;
    const HALVES: bool = false;
    const BYTES: usize = 18 + if FIVE { 4 } else { 0 } + if OFFSET == 0 { 2 } else { 0 };
    type Unpacked = Whole<FIVE, false>;

    #[inline(always)]
    unsafe fn weight<S: Simd>(tile: *const u8, planes: &Planes, b: usize, group: usize) -> S::I {
        unsafe { if FIVE { five::<S>(tile, planes, b, group) } else { nibble::<S>(tile, b, group) } }
    }
    #[inline(always)]
    unsafe fn scale<S: Simd>(tile: *const u8, planes: &Planes, b: usize, _: usize) -> S::F {
        unsafe { S::load_f16(tile.add(planes.scale + b * S::LANES * 2).cast()) }
    }
    #[inline(always)]
    unsafe fn min<S: Simd>(tile: *const u8, planes: &Planes, b: usize, _: usize, scale: S::F) -> S::F {
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
pub(super) struct Super<const FIVE: bool>;

impl<const FIVE: bool> Weights for Super<FIVE> {
    const SIGNED: bool = false;
    const NARROW: usize = if FIVE { 4 } else { 8 };
    const MIN: bool = true;
    const HALVES: bool = false;
    const BYTES: usize = if FIVE { 22 } else { 18 };
    type Unpacked = Whole<FIVE, false>;

    #[inline(always)]
    unsafe fn weight<S: Simd>(tile: *const u8, planes: &Planes, b: usize, group: usize) -> S::I {
        unsafe { if FIVE { five::<S>(tile, planes, b, group) } else { nibble::<S>(tile, b, group) } }
    }
    #[inline(always)]
    unsafe fn scale<S: Simd>(tile: *const u8, planes: &Planes, b: usize, _: usize) -> S::F {
        unsafe { super_scaled::<S>(tile, planes.scale, planes.super_scale, b) }
    }
    #[inline(always)]
    unsafe fn min<S: Simd>(tile: *const u8, planes: &Planes, b: usize, _: usize, _: S::F) -> S::F {
        unsafe { S::mul(super_scaled::<S>(tile, planes.min, planes.super_min, b), S::splat(-1.0)) }
    }
}

/// Q6_K.
pub(super) struct Six;

impl Weights for Six {
    const SIGNED: bool = false;
    const NARROW: usize = 2;
    const MIN: bool = true;
    const HALVES: bool = true;
    const BYTES: usize = 26;
    type Unpacked = Whole<false, true>;

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
    unsafe fn min<S: Simd>(_: *const u8, _: &Planes, _: usize, _: usize, scale: S::F) -> S::F {
        unsafe { S::mul(scale, S::splat(-32.0)) }
    }
}

/// What `unpack` writes: of each block eight vectors of bytes, then scale and minimum of its halves, or of the whole.
pub(super) struct Whole<const FIVE: bool, const SIX: bool>;

impl<const FIVE: bool, const SIX: bool> Whole<FIVE, SIX> {
    /// Bytes from block to block.
    #[inline(always)]
    fn stride<S: Simd>(halves: bool) -> usize {
        S::LANES * (32 + if halves { 16 } else { 8 })
    }
}

impl<const FIVE: bool, const SIX: bool> Weights for Whole<FIVE, SIX> {
    const SIGNED: bool = false;
    const NARROW: usize = if SIX { 2 } else { 8 >> FIVE as usize };
    const MIN: bool = true;
    const HALVES: bool = SIX;
    const BYTES: usize = 0;
    type Unpacked = Self;
    const UNPACKS: bool = false;

    // Blocks are counted from the matrix's first, tiles begin where that block would be: outside the panel.
    #[inline(always)]
    unsafe fn weight<S: Simd>(tile: *const u8, _: &Planes, b: usize, group: usize) -> S::I {
        unsafe { S::load_i(tile.wrapping_add(b * Self::stride::<S>(SIX) + group * S::LANES * 4)) }
    }
    #[inline(always)]
    unsafe fn scale<S: Simd>(tile: *const u8, _: &Planes, b: usize, half: usize) -> S::F {
        unsafe { S::load(tile.wrapping_add(b * Self::stride::<S>(SIX) + (32 + half * 8) * S::LANES).cast()) }
    }
    #[inline(always)]
    unsafe fn min<S: Simd>(tile: *const u8, _: &Planes, b: usize, half: usize, _: S::F) -> S::F {
        unsafe { S::load(tile.wrapping_add(b * Self::stride::<S>(SIX) + (36 + half * 8) * S::LANES).cast()) }
    }
}

pub(super) struct Integers<W>(W);

impl<W: Weights> Multiply for Integers<W> {
    type Unpacked = Integers<W::Unpacked>;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: &Stretch, cols: &Range<usize>, panel: &mut Panel) -> usize {
        if !W::UNPACKS {
            return 0;
        }
        let (planes, blocks) = (s.planes, cols.start / BLOCK..cols.end / BLOCK);
        let mut to = panel.0.as_mut_ptr().cast::<u8>();
        for tile in s.tiles.clone() {
            // SAFETY: the tiles hold these blocks; a panel has room for two tiles' slices.
            unsafe {
                let tile = s.weights.add(tile * planes.tile);
                for b in blocks.clone() {
                    fetch::<S, W, 2>(&[tile; 1], planes, b);
                    for group in 0..8 {
                        S::store_i(to, W::weight::<S>(tile, planes, b, group));
                        to = to.add(S::LANES * 4);
                    }
                    for half in 0..if W::HALVES { 2 } else { 1 } {
                        let scale = W::scale::<S>(tile, planes, b, half);
                        S::store(to.cast(), scale);
                        S::store(to.add(S::LANES * 4).cast(), W::min::<S>(tile, planes, b, half, scale));
                        to = to.add(S::LANES * 8);
                    }
                }
            }
        }
        blocks.len() * Whole::<false, false>::stride::<S>(W::HALVES)
    }

    #[inline(always)]
    unsafe fn tile<S: Simd, const RT: usize, const N: usize>(
        stretch: &Stretch,
        tiles: [*const u8; RT],
        x: *const u8,
        cols: &Range<usize>,
        ahead: bool,
        sums: &mut [[S::F; N]; RT],
    ) {
        let planes = stretch.planes;
        let words = if W::SIGNED { S::WORDS } else { 1 };
        for b in cols.start / BLOCK..cols.end / BLOCK {
            // SAFETY: tiles and activations hold these blocks.
            unsafe {
                if ahead {
                    fetch::<S, W, RT>(&tiles, planes, b);
                }
                let x = x.add(b * (BLOCK * words + NUMBERS) * N);
                block::<S, W, RT, N>(&tiles, planes, b, x.cast(), sums);
            }
        }
    }
}

/// Asks for the weights `AHEAD` bytes behind block `b`'s, and for what belongs to blocks of the tiles that follow: that lies
/// behind a tile's weights, but is wanted from its first block on. Behind a tile's own weights come the following tile's.
#[inline(always)]
unsafe fn fetch<S: Simd, W: Weights, const RT: usize>(tiles: &[*const u8], planes: &Planes, b: usize) {
    let weights = if W::SIGNED { 32 } else { 16 } * S::LANES;
    let behind = W::BYTES * S::LANES - weights;
    for tile in tiles {
        // SAFETY: asking reads nothing.
        unsafe {
            let mut at = b * weights + AHEAD;
            if at >= planes.high {
                at += RT * planes.tile - planes.high;
            }
            let mut line = 0;
            while line < weights {
                S::prefetch(tile.wrapping_add(at + line));
                line += 64;
            }
            let mut at = 0;
            while at < behind {
                S::prefetch(tile.wrapping_add(RT * planes.tile + planes.high + b * behind + at));
                at += 64;
            }
        }
    }
}

/// Adds one block's products.
#[inline(always)]
unsafe fn block<S: Simd, W: Weights, const RT: usize, const N: usize>(
    tiles: &[*const u8; RT],
    planes: &Planes,
    b: usize,
    values: *const i32,
    sums: &mut [[S::F; N]; RT],
) {
    // SAFETY: the caller's.
    unsafe {
        let words = if W::SIGNED { S::WORDS } else { 1 };
        let numbers = values.add(BLOCK / 4 * words * N).cast::<f32>();
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
                        let four = S::load_x(values.add((group * N + a) * words));
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
                    let min = W::min::<S>(tiles[r], planes, b, half, scale);
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
}
