//! Number formats of weights as GGML files hold them: block layouts, sizes, values.
//!
//! Layouts: ggml, `ggml-common.h` and `ggml-quants.c` (`dequantize_row_*`).

use crate::float16::{bf16_to_f32, f16_to_f32};

/// How weights are stored, as GGML lays them out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types)]
pub enum Format {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q4_K,
    Q5_K,
    Q6_K,
}

impl Format {
    /// Every format.
    pub const ALL: [Format; 11] = [
        Format::F32,
        Format::F16,
        Format::BF16,
        Format::Q8_0,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q4_K,
        Format::Q5_K,
        Format::Q6_K,
    ];

    /// Elements of a block, and the bytes that they take.
    pub const fn block(self) -> (usize, usize) {
        match self {
            Format::F32 => (1, 4),
            Format::F16 | Format::BF16 => (1, 2),
            Format::Q8_0 => (32, 34),
            Format::Q4_0 => (32, 18),
            Format::Q4_1 => (32, 20),
            Format::Q5_0 => (32, 22),
            Format::Q5_1 => (32, 24),
            Format::Q4_K => (256, 144),
            Format::Q5_K => (256, 176),
            Format::Q6_K => (256, 210),
        }
    }

    /// Bytes of a row of `cols` elements; `None` where they are no whole number of blocks or too many to count.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        let (elements, bytes) = self.block();
        if cols.is_multiple_of(elements) { (cols / elements).checked_mul(bytes) } else { None }
    }

    /// Whether products are taken with activations in 8 bits (integers) and not in 32 (floats).
    pub const fn quantized(self) -> bool {
        !matches!(self, Format::F32 | Format::F16 | Format::BF16)
    }
}

fn half(bytes: &[u8]) -> f32 {
    f16_to_f32(u16::from_le_bytes([bytes[0], bytes[1]]))
}

/// Scale and minimum of the 32 elements `index` (0 to 7) of a block of Q4_K or Q5_K, in units of the block's own two.
pub(crate) fn scale_and_min(packed: &[u8], index: usize) -> (u8, u8) {
    if index < 4 {
        (packed[index] & 63, packed[index + 4] & 63)
    } else {
        let low = packed[index + 4];
        ((low & 15) | ((packed[index - 4] >> 6) << 4), (low >> 4) | ((packed[index] >> 6) << 4))
    }
}

/// Writes the values of whole blocks of a GGML row.
///
/// # Panics
/// Where `bytes` and `out` don't hold the same whole number of blocks.
pub fn dequantize(format: Format, bytes: &[u8], out: &mut [f32]) {
    let expected = format.row_bytes(out.len());
    assert!(
        expected == Some(bytes.len()),
        "expected the bytes of {} elements of {format:?} ({expected:?}), got {}",
        out.len(),
        bytes.len()
    );
    let (elements, size) = format.block();
    for (block, values) in bytes.chunks_exact(size).zip(out.chunks_exact_mut(elements)) {
        block_values(format, block, values);
    }
}

fn block_values(format: Format, block: &[u8], values: &mut [f32]) {
    match format {
        Format::F32 => values[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
        Format::F16 => values[0] = half(block),
        Format::BF16 => values[0] = bf16_to_f32(u16::from_le_bytes([block[0], block[1]])),
        Format::Q8_0 => {
            let d = half(block);
            for (value, byte) in values.iter_mut().zip(&block[2..]) {
                *value = d * f32::from(*byte as i8);
            }
        }
        Format::Q4_0 => nibbles(values, half(block), -8.0 * half(block), &block[2..], 0),
        Format::Q4_1 => nibbles(values, half(block), half(&block[2..]), &block[4..], 0),
        Format::Q5_0 => {
            let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
            nibbles(values, half(block), -16.0 * half(block), &block[6..], high);
        }
        Format::Q5_1 => {
            let high = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
            nibbles(values, half(block), half(&block[2..]), &block[8..], high);
        }
        Format::Q4_K | Format::Q5_K => {
            let (d, dmin, packed) = (half(block), half(&block[2..]), &block[4..16]);
            let (high, low) = if format == Format::Q5_K { block[16..].split_at(32) } else { (&[][..], &block[16..]) };
            for index in 0..8 {
                let (scale, min) = scale_and_min(packed, index);
                for element in 0..32 {
                    let nibble = (low[index / 2 * 32 + element] >> (index % 2 * 4)) & 15;
                    let top = high.get(element).map_or(0, |byte| ((byte >> index) & 1) << 4);
                    values[index * 32 + element] =
                        d * f32::from(scale) * f32::from(nibble | top) - dmin * f32::from(min);
                }
            }
        }
        Format::Q6_K => {
            let (low, rest) = block.split_at(128);
            let (high, rest) = rest.split_at(64);
            let (scales, d) = (&rest[..16], half(&rest[16..]));
            for (element, value) in values.iter_mut().enumerate() {
                let quant = six_bits(low, high, element);
                *value = d * f32::from(scales[element / 16] as i8) * (f32::from(quant) - 32.0);
            }
        }
    }
}

/// Element `element` (0 to 255) of a block of Q6_K, 0 to 63.
fn six_bits(low: &[u8], high: &[u8], element: usize) -> u8 {
    let (part, within) = (element / 128, element % 128);
    let nibble = (low[part * 64 + within % 64] >> (within / 64 * 4)) & 15;
    nibble | (((high[part * 32 + within % 32] >> (within / 32 * 2)) & 3) << 4)
}

/// Thirty-two elements: the low four bits of byte i are element i, the high four element i + 16; `high` is the fifth bit.
fn nibbles(values: &mut [f32], scale: f32, min: f32, bytes: &[u8], high: u32) {
    for element in 0..32 {
        let nibble = (bytes[element % 16] >> (element / 16 * 4)) & 15;
        let top = (((high >> element) & 1) << 4) as u8;
        values[element] = scale * f32::from(nibble | top) + min;
    }
}
