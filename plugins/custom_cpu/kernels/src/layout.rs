//! How a matrix is packed: tiles of as many rows as a vector has lanes, each tile one stretch of memory, its rows
//! interleaved four columns at a time, with what belongs to a block in planes behind the weights.

use crate::activations::BLOCK;
use crate::format::Format;

/// Byte offsets of a tile's planes, from the tile's start; weights (or their low four bits) lie at 0.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Planes {
    /// Fifth (and sixth) bits.
    pub high: usize,
    /// Per block (Q6_K: half block) and row: f16 scale, or 8 bits in units of `super_scale`.
    pub scale: usize,
    /// Per block and row: f16 minimum, or 8 bits in units of `super_min`.
    pub min: usize,
    /// Per 256 columns and row, f16.
    pub super_scale: usize,
    pub super_min: usize,
    /// Bytes of a tile, a multiple of 64.
    pub tile: usize,
}

/// Bytes that a block of 32 columns takes in each plane, per row: weights, high bits, scale, minimum; and per 256 columns:
/// scale, minimum.
fn bytes_per_block(format: Format) -> [usize; 6] {
    match format {
        Format::F32 | Format::F16 | Format::BF16 => [0; 6],
        Format::Q8_0 => [32, 0, 2, 0, 0, 0],
        Format::Q4_0 => [16, 0, 2, 0, 0, 0],
        Format::Q4_1 => [16, 0, 2, 2, 0, 0],
        Format::Q5_0 => [16, 4, 2, 0, 0, 0],
        Format::Q5_1 => [16, 4, 2, 2, 0, 0],
        Format::Q4_K => [16, 0, 1, 1, 2, 2],
        Format::Q5_K => [16, 4, 1, 1, 2, 2],
        Format::Q6_K => [16, 8, 2, 0, 2, 0],
    }
}

impl Planes {
    /// The planes of a tile of `lanes` rows of `cols` columns; `None` where the sizes overflow.
    pub fn new(format: Format, lanes: usize, cols: usize) -> Option<Planes> {
        if !format.quantized() {
            let bytes = format.row_bytes(cols)?.checked_mul(lanes)?.checked_next_multiple_of(64)?;
            return Some(Planes { tile: bytes, ..Planes::default() });
        }
        let [weights, high, scale, min, super_scale, super_min] = bytes_per_block(format);
        let blocks = (cols / BLOCK).checked_mul(lanes)?;
        let supers = (cols / 256).checked_mul(lanes)?;
        let mut at = 0usize;
        let mut plane = |count: usize, bytes: usize| -> Option<usize> {
            let start = at;
            at = at.checked_add(count.checked_mul(bytes)?)?;
            Some(start)
        };
        plane(blocks, weights)?;
        let mut planes = Planes {
            high: plane(blocks, high)?,
            scale: plane(blocks, scale)?,
            min: plane(blocks, min)?,
            super_scale: plane(supers, super_scale)?,
            super_min: plane(supers, super_min)?,
            tile: 0,
        };
        planes.tile = at.checked_next_multiple_of(64)?;
        Some(planes)
    }
}
