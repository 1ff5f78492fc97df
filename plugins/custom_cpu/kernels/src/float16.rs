//! Sixteen-bit floats as bit patterns: IEEE 754 binary16 and bfloat16, rounded to nearest even.

/// The value of a binary16 bit pattern.
#[inline(always)]
pub fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff);
    let value = if magnitude >= 0x7c00 {
        f32::from_bits((magnitude << 13) | 0x7f80_0000)
    } else if magnitude >= 0x0400 {
        f32::from_bits((magnitude << 13) + 0x3800_0000)
    } else {
        // Subnormal: a whole number of 2^-24.
        magnitude as f32 * f32::from_bits(0x3380_0000)
    };
    f32::from_bits(value.to_bits() | sign)
}

/// The nearest binary16 bit pattern, ties to even; what is too large becomes infinite.
#[inline(always)]
pub fn f32_to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = ((bits >> 16) & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    let half = if magnitude > 0x7f80_0000 {
        0x7e00 // not a number
    } else if magnitude >= 0x4780_0000 {
        0x7c00
    } else if magnitude < 0x3880_0000 {
        // Adding 0.5 aligns the last kept bit of a subnormal with the last bit of the sum.
        (f32::from_bits(magnitude) + 0.5).to_bits() - 0x3f00_0000
    } else {
        (magnitude - 0x3800_0000 + 0x0fff + ((magnitude >> 13) & 1)) >> 13
    };
    sign | half as u16
}

/// The value of a bfloat16 bit pattern.
#[inline(always)]
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}
