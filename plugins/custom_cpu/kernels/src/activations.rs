//! Activations as the products read them: groups of rows side by side, in 8-bit blocks or as floats.
//!
//! A register tile takes `ACTS` rows at once, so their values lie together, one stream a tile: for each block of 32
//! columns the 8-bit values (eight times four columns of each row), then per row scale, scale · sum, scale · sum of the
//! second half, and what a signed product starts with: −BIAS · sum. Where a set takes sign masks and magnitudes for signed
//! products, both stand for the values, and a product starts with the magnitudes' sum over what is negative.

use crate::format::Format;
use crate::instruction_set::{InstructionSet, dispatch};
use crate::pool::Pool;
use crate::shared::SharedMut;
use crate::simd::{Kernel, Simd, quantize};

/// Columns of an 8-bit block.
pub(crate) const BLOCK: usize = 32;

/// Bytes behind a row's values in a block: three floats, one integer.
pub(crate) const NUMBERS: usize = 16;

/// How a product wants its activations.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Floats,
    /// 8 bits, for weights of four to six.
    Values,
    /// 8 bits, for signed weights of eight.
    Signed,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Floats, Kind::Values, Kind::Signed];

    pub fn of(format: Format) -> Kind {
        match format {
            Format::F32 | Format::F16 | Format::BF16 => Kind::Floats,
            Format::Q8_0 => Kind::Signed,
            _ => Kind::Values,
        }
    }

    /// Words that hold four activations.
    fn words(self, set: InstructionSet) -> usize {
        if self == Kind::Signed { set.shape().words } else { 1 }
    }
}

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
    pub fn new(kind: Kind, set: InstructionSet, rows: usize, cols: usize) -> Groups {
        let row_bytes = match kind {
            Kind::Floats => cols * size_of::<f32>(),
            _ => cols / BLOCK * (BLOCK * kind.words(set) + NUMBERS),
        };
        Groups { rows, acts: set.shape().acts, row_bytes }
    }

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

/// Fills `out` (`groups.bytes()` bytes, aligned to 4) with the rows of `x`.
pub(crate) fn prepare(set: InstructionSet, pool: &Pool, groups: Groups, kind: Kind, x: &[f32], out: &mut [u8]) {
    let cols = x.len() / groups.rows.max(1);
    let (to, groups_count) = (SharedMut::new(out), groups.count());
    let one = |index: usize| {
        let (start, rows) = (index * groups.acts, groups.rows_of(index));
        let x = &x[start * cols..(start + rows) * cols];
        // SAFETY: groups don't overlap.
        let out = unsafe { to.part(groups.offset(index), rows * groups.row_bytes) };
        match kind {
            Kind::Floats => interleave(x, rows, cols, out),
            _ => dispatch(set, QuantizeGroup { x, rows, cols, out, split: kind.words(set) == 2 }),
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
    /// Sign masks and magnitudes in place of values.
    split: bool,
}

impl Kernel for QuantizeGroup<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (rows, words) = (self.rows, if self.split { S::WORDS } else { 1 });
        let (values_words, bytes) = (BLOCK / 4 * words * rows, (BLOCK * words + NUMBERS) * rows);
        for (row, values) in self.x.chunks_exact(self.cols.max(1)).enumerate() {
            for (values, out) in values.as_chunks::<BLOCK>().0.iter().zip(self.out.chunks_exact_mut(bytes)) {
                let (scale, inverse) = block_scale(values);
                let mut quants = [0i8; BLOCK];
                // SAFETY: half of 32 each; a block's eight groups of all rows, and behind them four numbers of each row.
                unsafe {
                    let (from, to) = (values.as_ptr(), quants.as_mut_ptr());
                    let low = S::quantize_16(from, inverse, to);
                    let high = S::quantize_16(from.add(16), inverse, to.add(16));
                    let sum = low + high;
                    let out = out.as_mut_ptr().cast::<u32>();
                    let start = if words == 2 {
                        S::split(&quants, out.add(row * 2), rows * 2)
                    } else {
                        for (group, four) in quants.as_chunks::<4>().0.iter().enumerate() {
                            let four = u32::from_ne_bytes(four.map(|quant| quant as u8));
                            out.add(group * rows + row).write_unaligned(four);
                        }
                        -S::BIAS * sum
                    };
                    let numbers = out.add(values_words + row);
                    numbers.write_unaligned(scale.to_bits());
                    numbers.add(rows).write_unaligned((scale * sum as f32).to_bits());
                    numbers.add(2 * rows).write_unaligned((scale * high as f32).to_bits());
                    numbers.add(3 * rows).write_unaligned(start as u32);
                }
            }
        }
    }
}

/// The scale of a block of 32 values, whose largest magnitude becomes ±127, and what values are multiplied with.
#[inline(always)]
fn block_scale(values: &[f32; BLOCK]) -> (f32, f32) {
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
    for (values, out) in x.as_chunks::<BLOCK>().0.iter().zip(out.as_chunks_mut::<BLOCK>().0) {
        let (scale, inverse) = block_scale(values);
        for (values, out) in values.as_chunks::<16>().0.iter().zip(out.as_chunks_mut::<16>().0) {
            let mut quants = [0i8; 16];
            quantize(values, inverse, &mut quants);
            *out = quants.map(|quant| scale * f32::from(quant));
        }
    }
}
