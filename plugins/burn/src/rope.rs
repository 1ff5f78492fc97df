//! Rotary position embedding (Su et al. 2021, arXiv:2104.09864) from a table of every position of a session.

use burn::tensor::{Device, Tensor, TensorData};

/// What one file asks for.
#[derive(Debug, Clone)]
pub struct RopeConfig {
    /// Radians per position of every pair, in float64; twice as many dimensions of a head turn, the rest pass.
    pub frequencies: Vec<f64>,
    /// Pairs are (2i, 2i + 1), because converters permute the rows of q and k for `llama`; otherwise they are
    /// (i, i + dimensions / 2), the layout of GPT-NeoX.
    pub interleaved: bool,
    /// Cosine and sine are multiplied by this (LongRoPE's attention factor).
    pub magnitude: f64,
}

#[derive(Debug, Clone)]
pub struct Rope {
    dimensions: usize,
    interleaved: bool,
    cos: Tensor<2>, // (positions, dimensions), in the order of a head's dimensions
    sin: Tensor<2>, // the same, negative for the first of a pair
}

/// Cosine and signed sine of some positions, each (1, tokens, dimensions).
pub type Angles = (Tensor<3>, Tensor<3>);

impl Rope {
    pub fn new(config: &RopeConfig, positions: usize, device: &Device) -> Self {
        let half = config.frequencies.len();
        let dimensions = 2 * half;
        // In f64: position times frequency loses 1e-4 rad at position 4096 in f32.
        let table = |turn: fn(f64) -> f64, first_sign: f64| {
            let mut values = vec![0.0_f32; positions * dimensions];
            for (position, row) in values.chunks_exact_mut(dimensions.max(1)).enumerate() {
                for (i, frequency) in config.frequencies.iter().enumerate() {
                    let value = turn(position as f64 * frequency) * config.magnitude;
                    let (a, b) = if config.interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
                    row[a] = (first_sign * value) as f32;
                    row[b] = value as f32;
                }
            }
            Tensor::from_data(TensorData::new(values, [positions, dimensions]), device)
        };
        Self { dimensions, interleaved: config.interleaved, cos: table(f64::cos, 1.0), sin: table(f64::sin, -1.0) }
    }

    /// The part of the table for positions `past .. past + tokens`.
    pub fn angles(&self, past: usize, tokens: usize) -> Angles {
        let part = |table: &Tensor<2>| table.clone().narrow(0, past, tokens).unsqueeze();
        (part(&self.cos), part(&self.sin))
    }

    /// Turns x, (heads, tokens, head_dim).
    pub fn apply(&self, x: Tensor<3>, (cos, sin): &Angles) -> Tensor<3> {
        let [heads, tokens, head_dim] = x.dims();
        let turning = x.clone().narrow(2, 0, self.dimensions);
        // (a, b) to (b, a), so that a pair turns to (a cos - b sin, b cos + a sin).
        let half = self.dimensions / 2;
        let (pairs, axis) = if self.interleaved { ([half, 2], 3) } else { ([2, half], 2) };
        let swapped = turning.clone().reshape([heads, tokens, pairs[0], pairs[1]]).flip([axis]);
        let swapped = swapped.reshape([heads, tokens, self.dimensions]);
        let turned = turning * cos.clone() + swapped * sin.clone();
        if self.dimensions == head_dim {
            return turned;
        }
        Tensor::cat(vec![turned, x.narrow(2, self.dimensions, head_dim - self.dimensions)], 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the definition: the pair (a, b) at position p turns by p times the frequency.
    fn turned(a: f64, b: f64, angle: f64) -> [f64; 2] {
        [a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()]
    }

    #[test]
    fn both_layouts_turn_their_own_pairs_and_the_rest_passes() {
        let device = Device::flex();
        let x = [0.5_f32, -1.0, 2.0, 3.0, 7.0, 8.0];
        let input = Tensor::<1>::from_floats(x, &device).reshape([1, 1, 6]);
        for (interleaved, pairs) in [(true, [(0, 1), (2, 3)]), (false, [(0, 2), (1, 3)])] {
            let config = RopeConfig { frequencies: vec![1.0, 0.01], interleaved, magnitude: 2.0 };
            let rope = Rope::new(&config, 8, &device);
            let found = rope.apply(input.clone(), &rope.angles(5, 1)).into_data().try_to_vec::<f32>().unwrap();
            for ((a, b), frequency) in pairs.into_iter().zip([1.0, 0.01]) {
                let wanted = turned(f64::from(x[a]), f64::from(x[b]), 5.0 * frequency);
                assert!((f64::from(found[a]) - 2.0 * wanted[0]).abs() < 2e-6);
                assert!((f64::from(found[b]) - 2.0 * wanted[1]).abs() < 2e-6);
            }
            assert_eq!(found[4..], x[4..]);
        }
    }
}
