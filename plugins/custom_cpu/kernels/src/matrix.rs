//! A weight matrix, packed for one instruction set.

use std::sync::Mutex;

use crate::activations::BLOCK;
use crate::float16::{bf16_to_f32, f16_to_f32};
use crate::format::Format;
use crate::instruction_set::{InstructionSet, dispatch};
use crate::layout::Planes;
use crate::memory::Memory;
use crate::pack::{Pack, TilePacker};
use crate::pool::Pool;
use crate::shared::SharedMut;

/// Bytes that a thread packs at a time.
const CHUNK: usize = 256 << 10;

/// Rows × columns of weights, row-interleaved as `layout` says.
pub struct Matrix {
    pub(crate) format: Format,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) set: InstructionSet,
    pub(crate) lanes: usize,
    pub(crate) planes: Planes,
    packed: Memory,
}

impl Matrix {
    /// Packs GGML rows for the active instruction set, on the pool's threads.
    ///
    /// Args:
    ///     bytes: `rows` rows of `format.row_bytes(cols)` bytes, as the file holds them; not needed afterwards.
    ///
    /// # Errors
    /// Columns that are no whole number of blocks; sizes that overflow or don't match `bytes`; no memory.
    pub fn new(format: Format, rows: usize, cols: usize, bytes: &[u8], pool: &Pool) -> Result<Matrix, String> {
        let set = InstructionSet::active();
        let lanes = set.shape().lanes;
        let what = || format!("a {rows} x {cols} matrix of {format:?}");
        let row_bytes = format
            .row_bytes(cols)
            .ok_or_else(|| format!("{}: expected columns in blocks of {}, got {cols}", what(), format.block().0))?;
        if rows.checked_mul(row_bytes) != Some(bytes.len()) {
            return Err(format!("{}: expected {rows} rows of {row_bytes} bytes, got {} bytes", what(), bytes.len()));
        }
        let planes = Planes::new(format, lanes, cols).ok_or_else(|| format!("{}: too large", what()))?;
        let tiles = rows.div_ceil(lanes);
        let size = tiles.checked_mul(planes.tile).ok_or_else(|| format!("{}: too large", what()))?;
        let mut packed = Memory::new(size).map_err(|error| format!("{}: no memory: {error}", what()))?;
        let out = SharedMut::new(packed.as_mut());
        let step = (CHUNK / planes.tile.max(1)).max(1);
        pool.run(tiles.div_ceil(step), &|chunk| {
            for tile in chunk * step..tiles.min((chunk + 1) * step) {
                // SAFETY: tiles don't overlap.
                let out = unsafe { out.part(tile * planes.tile, planes.tile) };
                let held = lanes.min(rows - tile * lanes);
                // No set has more lanes.
                let mut each = [&[][..]; 16];
                for (lane, each) in each[..held].iter_mut().enumerate() {
                    *each = &bytes[(tile * lanes + lane) * row_bytes..][..row_bytes];
                }
                dispatch(set, Pack { packer: TilePacker { format, planes, lanes, out }, rows: &each[..held], cols });
            }
        });
        Ok(Matrix { format, rows, cols, set, lanes, planes, packed })
    }

    /// The packed weights.
    pub(crate) fn weights(&self) -> &[u8] {
        self.packed.as_slice()
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    pub fn format(&self) -> Format {
        self.format
    }

    /// Bytes of memory that the packed weights take: what one product reads.
    pub fn bytes(&self) -> usize {
        self.tiles() * self.planes.tile
    }

    pub(crate) fn tiles(&self) -> usize {
        self.rows.div_ceil(self.lanes)
    }

    /// Writes the values of one row.
    ///
    /// # Panics
    /// Where `row` or the length of `out` is not the matrix's.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "expected a row below {}, got {row}", self.rows);
        assert!(out.len() == self.cols, "expected room for {} values, got {}", self.cols, out.len());
        let tile = &self.weights()[row / self.lanes * self.planes.tile..][..self.planes.tile];
        let lane = row % self.lanes;
        for (col, value) in out.iter_mut().enumerate() {
            *value = self.value(tile, lane, col);
        }
    }

    fn value(&self, tile: &[u8], lane: usize, col: usize) -> f32 {
        let (planes, lanes) = (&self.planes, self.lanes);
        let short = |at: usize| u16::from_le_bytes([tile[at], tile[at + 1]]);
        let cell = col * lanes + lane;
        match self.format {
            Format::F32 => return f32::from_le_bytes(tile[cell * 4..cell * 4 + 4].try_into().expect("four bytes")),
            Format::F16 => return f16_to_f32(short(cell * 2)),
            Format::BF16 => return bf16_to_f32(short(cell * 2)),
            _ => {}
        }
        let (b, within) = (col / BLOCK, col % BLOCK);
        let (group, byte) = (within / 4, within % 4);
        let at = |plane: usize, row: usize| tile[plane + (row * lanes + lane) * 4 + byte];
        let block = b * lanes + lane;
        let block_scale = || f16_to_f32(short(planes.scale + block * 2));
        let super_block = b / 8 * lanes + lane;
        let super_scale = || f16_to_f32(short(planes.super_scale + super_block * 2));
        if self.format == Format::Q8_0 {
            let flip = if self.set.shape().bias == 0 { 0 } else { 0x80 };
            return block_scale() * f32::from((at(0, b * 8 + group) ^ flip) as i8);
        }
        let nibble = at(0, b * 4 + group % 4) >> (group / 4 * 4) & 15;
        let fifth = || f32::from(nibble | (at(planes.high, b) >> group & 1) << 4);
        let block_min = || f16_to_f32(short(planes.min + block * 2));
        let in_super = || super_scale() * f32::from(tile[planes.scale + block]);
        let super_min = || f16_to_f32(short(planes.super_min + super_block * 2)) * f32::from(tile[planes.min + block]);
        match self.format {
            Format::Q4_0 => block_scale() * (f32::from(nibble) - 8.0),
            Format::Q4_1 => block_scale() * f32::from(nibble) + block_min(),
            Format::Q5_0 => block_scale() * (fifth() - 16.0),
            Format::Q5_1 => block_scale() * fifth() + block_min(),
            Format::Q4_K => in_super() * f32::from(nibble) - super_min(),
            Format::Q5_K => in_super() * fifth() - super_min(),
            _ => {
                let quant = nibble | (at(planes.high, b * 2 + group / 4) >> (group % 4 * 2) & 3) << 4;
                let scale = tile[planes.scale + (b * 2 + within / 16) * lanes + lane] as i8;
                super_scale() * f32::from(scale) * (f32::from(quant) - 32.0)
            }
        }
    }
}

/// Prepared activations, kept from product to product: their memory is asked for once.
static SCRATCH: Mutex<Vec<Vec<u64>>> = Mutex::new(Vec::new());

/// Calls `f` with `bytes` bytes of scratch memory, aligned to 8.
pub(crate) fn with_scratch<R>(bytes: usize, f: impl FnOnce(&mut [u8]) -> R) -> R {
    let mut words = SCRATCH.lock().map_or_else(|_| Vec::new(), |mut kept| kept.pop().unwrap_or_default());
    if words.len() * 8 < bytes {
        words.resize(bytes.div_ceil(8), 0);
    }
    // SAFETY: plain numbers; as long as the words.
    let whole = unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<u8>(), words.len() * 8) };
    let result = f(&mut whole[..bytes]);
    if let Ok(mut kept) = SCRATCH.lock() {
        kept.push(words);
    }
    result
}
