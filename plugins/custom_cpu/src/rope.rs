//! Rotary position embedding: angles of a pass, in float64, and the turning of heads.

use crate::config::RopeConfig;

/// Frequencies of one model. Angles are made for every pass: a table of a long context would take more than the model.
#[derive(Debug)]
pub struct Rope {
    interleaved: bool,
    magnitude: f64,
    /// Radians per position of every pair that turns.
    frequencies: Vec<f64>,
}

impl Rope {
    /// `factors` are the values of `config.factors`, `dimensions / 2` of them, or none.
    pub fn new(config: &RopeConfig, factors: Option<&[f32]>) -> Self {
        let frequency = |i: usize| {
            let exponent = -2.0 * i as f64 / config.dimensions as f64;
            config.position_scale * config.base.powf(exponent) / factors.map_or(1.0, |all| f64::from(all[i]))
        };
        Self {
            interleaved: config.interleaved,
            magnitude: config.magnitude,
            frequencies: (0..config.dimensions / 2).map(frequency).collect(),
        }
    }

    /// How many values [`Rope::angles`] makes: cosine and sine of every pair.
    pub fn angle_count(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// Cosines, then sines, of one position.
    pub fn angles(&self, position: usize, out: &mut [f32]) {
        self.fill(position as f64, self.magnitude, out);
    }

    /// Cosines, then sines, that take keys back by `positions`: what was turned keeps its magnitude.
    pub fn angles_back(&self, positions: usize, out: &mut [f32]) {
        self.fill(-(positions as f64), 1.0, out);
    }

    // In f64: position times frequency loses 1e-4 rad at position 4096 in f32.
    fn fill(&self, position: f64, magnitude: f64, out: &mut [f32]) {
        let (cos, sin) = out.split_at_mut(self.frequencies.len());
        for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(&self.frequencies) {
            let (s, c) = (position * frequency).sin_cos();
            (*cos, *sin) = ((c * magnitude) as f32, (s * magnitude) as f32);
        }
    }

    /// Turns all heads of one row, each `head_dim` long, by `angles`.
    pub fn turn(&self, row: &mut [f32], head_dim: usize, angles: &[f32]) {
        let half = self.frequencies.len();
        let (cos, sin) = angles.split_at(half);
        for head in row.chunks_exact_mut(head_dim) {
            if self.interleaved {
                for ((pair, c), s) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
                    let (a, b) = (pair[0], pair[1]);
                    (pair[0], pair[1]) = (a * c - b * s, b * c + a * s);
                }
            } else {
                let (first, rest) = head.split_at_mut(half);
                for (((a, b), c), s) in first.iter_mut().zip(rest).zip(cos).zip(sin) {
                    (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(interleaved: bool) -> RopeConfig {
        RopeConfig { base: 10_000.0, dimensions: 4, interleaved, position_scale: 1.0, magnitude: 1.0, factors: None }
    }

    fn angles(rope: &Rope, position: usize) -> Vec<f32> {
        let mut angles = vec![0.0; rope.angle_count()];
        rope.angles(position, &mut angles);
        angles
    }

    /// By the definition: the pair (a, b) at position p turns by p * base^(-2i / dimensions).
    fn turned(a: f64, b: f64, position: f64, i: i32) -> [f64; 2] {
        let angle = position * 10_000_f64.powf(-2.0 * f64::from(i) / 4.0);
        [a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()]
    }

    #[test]
    fn both_layouts_turn_their_own_pairs_and_the_rest_passes() {
        let x = [0.5_f32, -1.0, 2.0, 3.0, 7.0, 8.0];
        for (interleaved, pairs) in [(true, [(0, 1), (2, 3)]), (false, [(0, 2), (1, 3)])] {
            let rope = Rope::new(&config(interleaved), None);
            let mut found = x;
            rope.turn(&mut found, 6, &angles(&rope, 5));
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
        let rope = Rope::new(&scaled, Some(&[1.0, 8.0]));
        for (found, frequency) in angles(&rope, 3).iter().zip([1.0_f64, 0.01 / 8.0]) {
            assert!((f64::from(*found) - 2.0 * (3.0 * 0.5 * frequency).cos()).abs() < 1e-6);
        }
    }

    #[test]
    fn a_key_taken_back_is_the_key_of_an_earlier_position() {
        let scaled = RopeConfig { magnitude: 2.0, ..config(true) };
        let rope = Rope::new(&scaled, None);
        let (mut moved, mut wanted) = ([0.5_f32, -1.0, 2.0, 3.0], [0.5_f32, -1.0, 2.0, 3.0]);
        rope.turn(&mut moved, 4, &angles(&rope, 40));
        let mut back = vec![0.0; rope.angle_count()];
        rope.angles_back(32, &mut back);
        rope.turn(&mut moved, 4, &back);
        rope.turn(&mut wanted, 4, &angles(&rope, 8));
        for (found, wanted) in moved.iter().zip(wanted) {
            assert!((found - wanted).abs() < 1e-5);
        }
    }
}
