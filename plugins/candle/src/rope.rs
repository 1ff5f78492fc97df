//! Rotary position embedding from a table of every position that a session can hold.

use candle_core::{D, Device, Result, Tensor};
use candle_nn::rotary_emb;

use crate::config::RopeConfig;

#[derive(Debug, Clone)]
pub struct Rope {
    dimensions: usize,
    interleaved: bool,
    cos: Tensor, // (positions, dimensions / 2)
    sin: Tensor,
}

impl Rope {
    /// `factors` are the values of `config.rope.factors`, `dimensions / 2` of them, or none.
    pub fn new(config: &RopeConfig, positions: usize, factors: Option<&[f32]>, device: &Device) -> Result<Self> {
        let half = config.dimensions / 2;
        // In f64: position times frequency loses 1e-4 rad at position 4096 in f32.
        let frequencies: Vec<f64> = (0..half)
            .map(|i| {
                let exponent = -2.0 * i as f64 / config.dimensions as f64;
                config.position_scale * config.base.powf(exponent) / factors.map_or(1.0, |all| f64::from(all[i]))
            })
            .collect();
        let table = |turn: fn(f64) -> f64| -> Result<Tensor> {
            let values: Vec<f32> = (0..positions)
                .flat_map(|position| {
                    frequencies.iter().map(move |each| (turn(position as f64 * each) * config.magnitude) as f32)
                })
                .collect();
            Tensor::from_vec(values, (positions, half), device)
        };
        Ok(Self {
            dimensions: config.dimensions,
            interleaved: config.interleaved,
            cos: table(f64::cos)?,
            sin: table(f64::sin)?,
        })
    }

    /// Cosine and sine of positions `past .. past + tokens`, each (tokens, dimensions / 2).
    pub fn angles(&self, past: usize, tokens: usize) -> Result<(Tensor, Tensor)> {
        Ok((self.cos.narrow(0, past, tokens)?, self.sin.narrow(0, past, tokens)?))
    }

    /// Turns x, (heads, tokens, head_dim), contiguous; so is what comes back.
    pub fn apply(&self, x: &Tensor, angles: &(Tensor, Tensor)) -> Result<Tensor> {
        let rope = if self.interleaved { rotary_emb::rope_i } else { rotary_emb::rope };
        let x = x.unsqueeze(0)?; // (1, heads, tokens, head_dim): the kernels want a batch
        let head_dim = x.dim(D::Minus1)?;
        if self.dimensions == head_dim {
            return rope(&x, &angles.0, &angles.1)?.squeeze(0);
        }
        let turned = x.narrow(D::Minus1, 0, self.dimensions)?.contiguous()?;
        let passed = x.narrow(D::Minus1, self.dimensions, head_dim - self.dimensions)?;
        let turned = rope(&turned, &angles.0, &angles.1)?;
        Tensor::cat(&[&turned, &passed], D::Minus1)?.squeeze(0)?.contiguous()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(interleaved: bool) -> RopeConfig {
        RopeConfig { base: 10_000.0, dimensions: 4, interleaved, position_scale: 1.0, magnitude: 1.0, factors: None }
    }

    /// By the definition: the pair (a, b) at position p turns by p * base^(-2i / dimensions).
    fn turned(a: f64, b: f64, position: f64, i: i32) -> [f64; 2] {
        let angle = position * 10_000_f64.powf(-2.0 * f64::from(i) / 4.0);
        [a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()]
    }

    #[test]
    fn both_layouts_turn_their_own_pairs_and_the_rest_passes() {
        let x = [0.5_f32, -1.0, 2.0, 3.0, 7.0, 8.0];
        let input = Tensor::from_slice(&x, (1, 1, 6), &Device::Cpu).unwrap();
        for (interleaved, pairs) in [(true, [(0, 1), (2, 3)]), (false, [(0, 2), (1, 3)])] {
            let rope = Rope::new(&config(interleaved), 8, None, &Device::Cpu).unwrap();
            let found = rope.apply(&input, &rope.angles(5, 1).unwrap()).unwrap();
            let found: Vec<f32> = found.flatten_all().unwrap().to_vec1().unwrap();
            for (i, (a, b)) in pairs.into_iter().enumerate() {
                let wanted = turned(f64::from(x[a]), f64::from(x[b]), 5.0, i as i32);
                assert!((f64::from(found[a]) - wanted[0]).abs() < 1e-6);
                assert!((f64::from(found[b]) - wanted[1]).abs() < 1e-6);
            }
            assert_eq!(found[4..], x[4..]);
        }
    }

    #[test]
    fn factors_divide_frequencies_and_the_magnitude_scales() {
        let scaled = RopeConfig { magnitude: 2.0, position_scale: 0.5, ..config(false) };
        let rope = Rope::new(&scaled, 4, Some(&[1.0, 8.0]), &Device::Cpu).unwrap();
        let (cos, _) = rope.angles(3, 1).unwrap();
        let found: Vec<f32> = cos.flatten_all().unwrap().to_vec1().unwrap();
        for (found, frequency) in found.iter().zip([1.0_f64, 0.01 / 8.0]) {
            assert!((f64::from(*found) - 2.0 * (3.0 * 0.5 * frequency).cos()).abs() < 1e-6);
        }
    }
}
