//! From GGML rows to a packed tile, block by block and without rounding: the same integers, in another order.

use crate::activations::BLOCK;
use crate::format::{Format, scale_and_min};
use crate::layout::Planes;
use crate::simd::{Kernel, Simd};

/// Where a tile goes and how it is laid out.
pub(crate) struct TilePacker<'a> {
    pub format: Format,
    pub planes: Planes,
    pub lanes: usize,
    pub out: &'a mut [u8],
}

const LOW: u64 = 0x0f0f_0f0f_0f0f_0f0f;

/// What lanes hold that no row has.
static ZEROS: [u8; 32] = [0; 32];

/// A tile's rows, GGML bytes of `cols` columns each; lanes that no row has count as zero.
pub(crate) struct Pack<'a> {
    pub packer: TilePacker<'a>,
    pub rows: &'a [&'a [u8]],
    pub cols: usize,
}

impl Kernel for Pack<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Pack { mut packer, rows, cols } = self;
        let (elements, size) = packer.format.block();
        if cols == 0 {
            return;
        }
        if !packer.format.quantized() {
            return if size == 4 { packer.transpose::<4>(rows) } else { packer.transpose::<2>(rows) };
        }
        for index in 0..cols / elements {
            if elements == BLOCK {
                // SAFETY: in the instruction set's own function.
                unsafe { packer.weights::<S>(rows, index) };
            }
            for (lane, row) in rows.iter().enumerate() {
                let block = &row[index * size..(index + 1) * size];
                if elements == BLOCK {
                    packer.block(lane, index, block)
                } else {
                    packer.super_block(lane, index, block)
                }
            }
        }
    }
}

impl TilePacker<'_> {
    /// The weights of block `index` of all rows, in formats whose blocks hold them as the tile does.
    #[inline(always)]
    unsafe fn weights<S: Simd>(&mut self, rows: &[&[u8]], index: usize) {
        let size = self.format.block().1;
        let (at, words) = match self.format {
            Format::Q8_0 => (2, 8),
            Format::Q4_0 => (2, 4),
            Format::Q4_1 => (4, 4),
            Format::Q5_0 => (6, 4),
            _ => (8, 4),
        };
        let flip = if self.format == Format::Q8_0 && S::BIAS != 0 { 0x8080_8080 } else { 0 };
        let mut from = [ZEROS.as_ptr(); 16];
        for (from, row) in from.iter_mut().zip(rows) {
            *from = row[index * size + at..][..words * 4].as_ptr();
        }
        let bytes = words * S::LANES * 4;
        let out = &mut self.out[index * bytes..(index + 1) * bytes];
        // SAFETY: so many words of each row, and room for them.
        unsafe { S::interleave(&from, words, flip, out.as_mut_ptr()) };
    }

    fn transpose<const SIZE: usize>(&mut self, rows: &[&[u8]]) {
        for (lane, row) in rows.iter().enumerate() {
            let to = self.out[lane * SIZE..].chunks_mut(self.lanes * SIZE);
            for (to, from) in to.zip(row.as_chunks::<SIZE>().0) {
                *to.first_chunk_mut::<SIZE>().expect("a whole element") = *from;
            }
        }
    }

    #[inline(always)]
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.out[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Four bytes at a time, `lanes` rows apart.
    #[inline(always)]
    fn spread<const COUNT: usize>(&mut self, plane: usize, lane: usize, first: usize, bytes: &[u8; COUNT]) {
        let start = plane + (first * self.lanes + lane) * 4;
        let step = self.lanes * 4;
        assert!(start + (COUNT / 4 - 1) * step + 4 <= self.out.len(), "a block outside its tile");
        for i in 0..COUNT / 4 {
            let four = [bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]];
            // SAFETY: the last one is inside the tile.
            unsafe { self.out.as_mut_ptr().add(start + i * step).cast::<[u8; 4]>().write(four) };
        }
    }

    /// What a block holds beside its weights.
    #[inline(always)]
    fn block(&mut self, lane: usize, index: usize, block: &[u8]) {
        let (planes, cell) = (self.planes, index * self.lanes + lane);
        self.put(planes.scale + cell * 2, &block[..2]);
        let (minimum, high) = match self.format {
            Format::Q8_0 | Format::Q4_0 => (None, None),
            Format::Q4_1 => (Some(&block[2..4]), None),
            Format::Q5_0 => (None, Some(&block[2..6])),
            _ => (Some(&block[2..4]), Some(&block[4..8])),
        };
        if let Some(minimum) = minimum {
            self.put(planes.min + cell * 2, minimum);
        }
        if let Some(high) = high {
            let bits = u32::from_le_bytes([high[0], high[1], high[2], high[3]]);
            self.put(planes.high + cell * 4, &fifth_bits(bits));
        }
    }

    fn super_block(&mut self, lane: usize, index: usize, block: &[u8]) {
        let (planes, lanes) = (self.planes, self.lanes);
        if self.format == Format::Q6_K {
            return self.six(lane, index, block);
        }
        self.put(planes.super_scale + (index * lanes + lane) * 2, &block[..2]);
        self.put(planes.super_min + (index * lanes + lane) * 2, &block[2..4]);
        let (high, low) = if self.format == Format::Q5_K { block[16..].split_at(32) } else { (&[][..], &block[16..]) };
        for part in 0..8 {
            let cell = (index * 8 + part) * lanes + lane;
            let (scale, min) = scale_and_min(&block[4..16], part);
            self.out[planes.scale + cell] = scale;
            self.out[planes.min + cell] = min;
            let source = &low[part / 2 * 32..part / 2 * 32 + 32];
            self.spread(0, lane, (index * 8 + part) * 4, &halves(source, part % 2 * 4));
            if !high.is_empty() {
                let bits = (0..8).fold(0, |bits, g| bits | (word(high, 4 * g) >> part & 0x0101_0101) << g);
                self.put(planes.high + cell * 4, &bits.to_le_bytes());
            }
        }
    }

    fn six(&mut self, lane: usize, index: usize, block: &[u8]) {
        let (planes, lanes) = (self.planes, self.lanes);
        let (low, rest) = block.split_at(128);
        let (high, rest) = rest.split_at(64);
        self.put(planes.super_scale + (index * lanes + lane) * 2, &rest[16..18]);
        for part in 0..8 {
            // Elements of a half (128) lie 32 a quarter: two quarters share bytes of low bits, four those of high bits.
            let (start, quarter) = (part / 4, part % 4);
            let source = &low[start * 64 + quarter % 2 * 32..][..32];
            self.spread(0, lane, (index * 8 + part) * 4, &halves(source, quarter / 2 * 4));
            let mut pairs = [0u8; 8];
            for (half, out) in pairs.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                let source = |i: usize| word(high, start * 32 + half * 16 + i * 4) >> (quarter * 2) & 0x0303_0303;
                *out = (source(0) | source(1) << 2 | source(2) << 4 | source(3) << 6).to_le_bytes();
            }
            self.spread(planes.high, lane, (index * 8 + part) * 2, &pairs);
            for half in 0..2 {
                self.out[planes.scale + ((index * 8 + part) * 2 + half) * lanes + lane] = rest[part * 2 + half];
            }
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Of 32 bytes the nibbles at `shift`: element i in the low half of byte i, element i + 16 in the high half.
fn halves(bytes: &[u8], shift: usize) -> [u8; 16] {
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes")) >> shift & LOW;
    let mut out = [0; 16];
    out[..8].copy_from_slice(&(word(0) | word(16) << 4).to_le_bytes());
    out[8..].copy_from_slice(&(word(8) | word(24) << 4).to_le_bytes());
    out
}

/// Bit i of `bits` is element i's; out: bit g of byte k is element 4 g + k's.
fn fifth_bits(bits: u32) -> [u8; 4] {
    // A 4 × 8 bit transpose: multiplying gathers every fourth bit of what the mask leaves.
    std::array::from_fn(|k| {
        let every = u64::from(bits >> k & 0x1111_1111);
        let pairs = (every | every >> 3) & 0x0303_0303;
        let fours = (pairs | pairs >> 6) & 0x000f_000f;
        (fours | fours >> 12) as u8
    })
}
