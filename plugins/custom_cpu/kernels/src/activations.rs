//! Activations as the products read them: groups of rows side by side, in 8-bit blocks or as floats.
//!
//! A register tile takes `ACTS` rows at once, so their values lie together, one stream a tile: for each block of 32
//! columns the 8-bit values (eight times four columns of each row), then per row scale, scale · sum, scale · sum of the
//! second half, and −BIAS · sum.

use crate::instruction_set::{InstructionSet, dispatch};
use crate::pool::Pool;
use crate::shared::SharedMut;
use crate::simd::{Kernel, Simd, quantize};

/// Columns of an 8-bit block.
pub(crate) const BLOCK: usize = 32;

/// Bytes of a row's block: 32 values, three floats, one integer.
pub(crate) const BLOCK_BYTES: usize = BLOCK + 16;

/// Rows below which the calling thread prepares them alone: waking others takes longer.
const ALONE: usize = 8;

/// Where groups of rows begin.
#[derive(Clone, Copy)]
pub(crate) struct Groups {
    pub rows: usize,
    /// Rows of every group but the last.
    pub acts: usize,
    /// Bytes of one row.
    pub row_bytes: usize,
}

impl Groups {
    pub fn count(&self) -> usize {
        self.rows.div_ceil(self.acts)
    }

    /// Rows of group `index`.
    pub fn rows_of(&self, index: usize) -> usize {
        (self.rows - index * self.acts).min(self.acts)
    }

    pub fn offset(&self, index: usize) -> usize {
        index * self.acts * self.row_bytes
    }

    pub fn bytes(&self) -> usize {
        self.rows * self.row_bytes
    }
}

/// Rows of 8-bit blocks for sets' register tiles.
pub(crate) fn quantized_groups(set: InstructionSet, rows: usize, cols: usize) -> Groups {
    Groups { rows, acts: set.acts(), row_bytes: cols / BLOCK * BLOCK_BYTES }
}

/// Rows of floats, columns outermost.
pub(crate) fn float_groups(set: InstructionSet, rows: usize, cols: usize) -> Groups {
    Groups { rows, acts: set.acts(), row_bytes: cols * size_of::<f32>() }
}

/// Fills `out` (`groups.bytes()` bytes, aligned to 4) with the rows of `x`, in 8 bits or as floats.
pub(crate) fn prepare(set: InstructionSet, pool: &Pool, groups: Groups, quantize: bool, x: &[f32], out: &mut [u8]) {
    let cols = x.len() / groups.rows.max(1);
    let (to, groups_count) = (SharedMut::new(out), groups.count());
    let one = |index: usize| {
        let (start, rows) = (index * groups.acts, groups.rows_of(index));
        let x = &x[start * cols..(start + rows) * cols];
        // SAFETY: groups don't overlap.
        let out = unsafe { to.part(groups.offset(index), rows * groups.row_bytes) };
        if quantize {
            dispatch(set, QuantizeGroup { x, rows, cols, out });
        } else {
            interleave(x, rows, cols, out);
        }
    };
    if groups.rows < ALONE { (0..groups_count).for_each(one) } else { pool.run(groups_count, &one) }
}

fn interleave(x: &[f32], rows: usize, cols: usize, out: &mut [u8]) {
    for (row, values) in x.chunks_exact(cols.max(1)).enumerate() {
        for (col, value) in values.iter().enumerate() {
            let at = (col * rows + row) * 4;
            out[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
    }
}

struct QuantizeGroup<'a> {
    x: &'a [f32],
    rows: usize,
    cols: usize,
    out: &'a mut [u8],
}

impl Kernel for QuantizeGroup<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let rows = self.rows;
        for (row, values) in self.x.chunks_exact(self.cols.max(1)).enumerate() {
            let blocks = values.chunks_exact(BLOCK).zip(self.out.chunks_exact_mut(BLOCK_BYTES * rows));
            for (values, out) in blocks {
                let (scale, inverse) = block_scale(values);
                let mut quants = [0i8; BLOCK];
                // SAFETY: half of 32 each.
                let (low, high) = unsafe {
                    let (from, to) = (values.as_ptr(), quants.as_mut_ptr());
                    (S::quantize_16(from, inverse, to), S::quantize_16(from.add(16), inverse, to.add(16)))
                };
                let (quants_out, numbers) = out.split_at_mut(BLOCK * rows);
                let quants = quants.map(|quant| quant as u8);
                if rows == 1 {
                    quants_out.copy_from_slice(&quants);
                } else {
                    let to = quants_out[row * 4..].chunks_mut(rows * 4);
                    for (to, four) in to.zip(quants.as_chunks::<4>().0) {
                        *to.first_chunk_mut().expect("four values") = *four;
                    }
                }
                let sum = low + high;
                let words = [
                    scale.to_bits(),
                    (scale * sum as f32).to_bits(),
                    (scale * high as f32).to_bits(),
                    (-S::BIAS * sum) as u32,
                ];
                for (word, bits) in words.into_iter().enumerate() {
                    let at = (word * rows + row) * 4;
                    numbers[at..at + 4].copy_from_slice(&bits.to_ne_bytes());
                }
            }
        }
    }
}

/// The scale of a block of 32 values, whose largest magnitude becomes ±127, and what values are multiplied with.
#[inline(always)]
fn block_scale(values: &[f32]) -> (f32, f32) {
    // Magnitudes as integers order like the floats and, unlike them, in any order; what is no number stays largest.
    let largest = values.iter().fold(0u32, |most, value| most.max(value.to_bits() & 0x7fff_ffff));
    let largest = f32::from_bits(largest);
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    (largest / 127.0, if inverse.is_finite() { inverse } else { 0.0 })
}

/// Rounds each row's blocks of 32 to 8 bits as the integer products do, and writes the rounded values as floats: what a
/// reference must feed a quantized matrix to be compared with `matmul`.
///
/// # Panics
/// Where `x` is no whole number of blocks, or `out` has another length.
pub fn quantize_rows(x: &[f32], out: &mut [f32]) {
    assert!(
        x.len() == out.len() && x.len().is_multiple_of(BLOCK),
        "expected blocks of {BLOCK}, got {} and {}",
        x.len(),
        out.len()
    );
    for (values, out) in x.chunks_exact(BLOCK).zip(out.chunks_exact_mut(BLOCK)) {
        let (scale, inverse) = block_scale(values);
        for (values, out) in values.as_chunks::<16>().0.iter().zip(out.as_chunks_mut::<16>().0) {
            let mut quants = [0i8; 16];
            quantize(values, inverse, &mut quants);
            *out = quants.map(|quant| scale * f32::from(quant));
        }
    }
}
