//! The small layers between the products: norms, softmax, gates. One row at a time, sums in one fixed order.

use crate::instruction_set::{InstructionSet, dispatch};
use crate::math::exp_all;
use crate::simd::{Kernel, Simd};

/// Partial sums of a reduction: as many as the widest vector has lanes, whatever the instruction set.
const LANES: usize = 16;

/// Σ of f over the values, in `LANES` sums added pairwise.
#[inline(always)]
fn sum(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0f32; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for lane in 0..LANES {
            sums[lane] += f(chunk[lane]);
        }
    }
    for (lane, value) in rest.iter().enumerate() {
        sums[lane] += f(*value);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

#[inline(always)]
fn largest(values: &[f32]) -> f32 {
    let mut most = [f32::NEG_INFINITY; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for lane in 0..LANES {
            most[lane] = if chunk[lane] > most[lane] { chunk[lane] } else { most[lane] };
        }
    }
    rest.iter().chain(&most).fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a })
}

fn same_length(what: &str, expected: usize, got: usize) {
    assert!(expected == got, "{what}: expected {expected} values, got {got}");
}

/// Functions of slices, compiled for each instruction set: the check runs first, then the body, inlined into the set's own.
macro_rules! kernels {
    ($($(#[$doc:meta])* fn $name:ident<$life:lifetime, $set:ident>($($arg:ident : $type:ty),*) if $check:block $body:block)*) => {$(
        $(#[$doc])*
        #[allow(clippy::needless_lifetimes)]
        pub fn $name<$life>($($arg: $type),*) {
            struct Call<$life> { $($arg: $type),* }
            impl<$life> Kernel for Call<$life> {
                type Output = ();
                #[inline(always)]
                unsafe fn run<$set: Simd>(self) {
                    let Call { $($arg),* } = self;
                    $body
                }
            }
            $check
            dispatch(InstructionSet::active(), Call { $($arg),* });
        }
    )*};
}

kernels! {
    /// out = x / sqrt(mean(x²) + eps) · weight, one row.
    ///
    /// # Panics
    /// Where lengths differ.
    fn rms_norm<'a, S>(x: &'a [f32], weight: &'a [f32], eps: f32, out: &'a mut [f32]) if {
        same_length("rms_norm: weight", x.len(), weight.len());
        same_length("rms_norm: out", x.len(), out.len());
    } {
        let scale = 1.0 / (sum(x, |value| value * value) / x.len() as f32 + eps).sqrt();
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * scale * weight;
        }
    }

    /// out = (x − mean) / sqrt(variance + eps) · weight + bias, one row.
    ///
    /// # Panics
    /// Where lengths differ.
    fn layer_norm<'a, S>(x: &'a [f32], weight: &'a [f32], bias: &'a [f32], eps: f32, out: &'a mut [f32]) if {
        same_length("layer_norm: weight", x.len(), weight.len());
        same_length("layer_norm: bias", x.len(), bias.len());
        same_length("layer_norm: out", x.len(), out.len());
    } {
        let mean = sum(x, |value| value) / x.len() as f32;
        let variance = sum(x, |value| (value - mean) * (value - mean)) / x.len() as f32;
        let scale = 1.0 / (variance + eps).sqrt();
        for (((out, x), weight), bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
            *out = (x - mean) * scale * weight + bias;
        }
    }

    /// values = e^(values − largest) / Σ, one row.
    fn softmax<'a, S>(values: &'a mut [f32]) if {} {
        let most = largest(values);
        // SAFETY: in the instruction set's own function.
        unsafe { exp_all::<S>(values, 1.0, -most) };
        let scale = 1.0 / sum(values, |value| value);
        for value in values.iter_mut() {
            *value *= scale;
        }
    }

    /// gate = gate · sigmoid(gate) · up
    ///
    /// # Panics
    /// Where lengths differ.
    fn silu_mul<'a, S>(gate: &'a mut [f32], up: &'a [f32]) if {
        same_length("silu_mul: up", gate.len(), up.len());
    } {
        let mut powers = [0.0; LANES];
        for (gate, up) in gate.chunks_mut(LANES).zip(up.chunks(LANES)) {
            let powers = &mut powers[..gate.len()];
            powers.copy_from_slice(gate);
            // SAFETY: in the instruction set's own function.
            unsafe { exp_all::<S>(powers, -1.0, 0.0) };
            for ((gate, power), up) in gate.iter_mut().zip(powers).zip(up) {
                *gate = *gate / (1.0 + *power) * up;
            }
        }
    }

    /// x = x · Φ(x) by the hyperbolic tangent, as GPT-2 and GGML have it (Hendrycks & Gimpel 2016, section 2).
    fn gelu<'a, S>(x: &'a mut [f32]) if {} {
        // x · (1 + tanh u) / 2 = x · sigmoid(2 u), u = sqrt(2/π) (x + 0.044715 x³)
        const TWICE: f32 = 1.595_769;
        let mut powers = [0.0; LANES];
        for x in x.chunks_mut(LANES) {
            let powers = &mut powers[..x.len()];
            for (power, x) in powers.iter_mut().zip(x.iter()) {
                *power = TWICE * *x * (1.0 + 0.044_715 * *x * *x);
            }
            // SAFETY: in the instruction set's own function.
            unsafe { exp_all::<S>(powers, -1.0, 0.0) };
            for (x, power) in x.iter_mut().zip(powers) {
                *x /= 1.0 + *power;
            }
        }
    }

    /// a += b
    ///
    /// # Panics
    /// Where lengths differ.
    fn add<'a, S>(a: &'a mut [f32], b: &'a [f32]) if {
        same_length("add: b", a.len(), b.len());
    } {
        for (a, b) in a.iter_mut().zip(b) {
            *a += b;
        }
    }
}

/// The index of the largest value, the first of equal ones; 0 where none is a number.
pub fn argmax(values: &[f32]) -> usize {
    const BLOCK: usize = 1024;
    let mut best = (0, f32::NEG_INFINITY);
    let mut found = false;
    for (index, block) in values.chunks(BLOCK).enumerate() {
        let most = largest(block);
        if (most > best.1 || !found)
            && let Some(at) = block.iter().position(|value| *value == most)
        {
            best = (index * BLOCK + at, most);
            found = true;
        }
    }
    best.0
}
