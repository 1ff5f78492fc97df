//! Rotary position embedding: pairs of a head's values turned by an angle that grows with the position.

/// Which values of a head make a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairs {
    /// (0, 1), (2, 3), …: GGUF `llama`, whose query and key weights are permuted for it.
    Adjacent,
    /// (0, d/2), (1, d/2 + 1), …: GPT-NeoX, qwen2, phi3.
    Halves,
}

/// Cosines and sines of positions.
pub struct RopeTable {
    frequencies: Vec<f32>,
    magnitude: f32,
    /// (positions, pairs)
    turns: Vec<(f32, f32)>,
}

impl RopeTable {
    /// Angles of `dims / 2` pairs: position · base^(−2 i / dims) / factors\[i\].
    ///
    /// Args:
    ///     dims: values of a head that are turned, even.
    ///     factors: one per pair (`rope_freqs.weight`, phi3's long and short factors), or none.
    ///     magnitude: what cosines and sines are multiplied with (YaRN's and phi3's attention factor; else 1).
    ///     positions: 0 to here are computed now, others each time they are asked for.
    ///
    /// # Panics
    /// Where `dims` is odd or `factors` has another length.
    pub fn new(dims: usize, base: f32, factors: Option<&[f32]>, magnitude: f32, positions: usize) -> RopeTable {
        assert!(dims.is_multiple_of(2), "expected an even number of turned values, got {dims}");
        let count = dims / 2;
        assert!(
            factors.is_none_or(|f| f.len() == count),
            "expected {count} factors, got {:?}",
            factors.map(<[f32]>::len)
        );
        let frequency = |i: usize| {
            let plain = f64::from(base).powf(-2.0 * i as f64 / dims as f64);
            (plain / factors.map_or(1.0, |f| f64::from(f[i]))) as f32
        };
        let frequencies = (0..count).map(frequency).collect();
        let mut table = RopeTable { frequencies, magnitude, turns: Vec::new() };
        table.turns = (0..positions).flat_map(|position| table.turns_at(position as i32)).collect();
        table
    }

    fn turns_at(&self, position: i32) -> Vec<(f32, f32)> {
        let turn = |frequency: &f32| {
            // The product in double: at 100,000 positions a float's angle is off by 0.004.
            let (sine, cosine) = (f64::from(position) * f64::from(*frequency)).sin_cos();
            (cosine as f32 * self.magnitude, sine as f32 * self.magnitude)
        };
        self.frequencies.iter().map(turn).collect()
    }

    /// Turns the heads of one row, in place, as position `position` wants them (negative: back by that much).
    ///
    /// Args:
    ///     x: heads · head_dim values; the first `dims` of each head are turned.
    ///
    /// # Panics
    /// Where a head is shorter than what is turned, or `x` no whole number of heads.
    pub fn rotate(&self, pairs: RopePairs, x: &mut [f32], head_dim: usize, position: i32) {
        let count = self.frequencies.len();
        assert!(
            head_dim >= 2 * count && x.len().is_multiple_of(head_dim.max(1)),
            "expected heads of {head_dim}, got {}",
            x.len()
        );
        let start = usize::try_from(position).unwrap_or(usize::MAX).saturating_mul(count);
        let computed;
        let turns = match start.checked_add(count).and_then(|end| self.turns.get(start..end)) {
            Some(turns) => turns,
            None => {
                computed = self.turns_at(position);
                &computed
            }
        };
        for head in x.chunks_exact_mut(head_dim) {
            match pairs {
                RopePairs::Adjacent => {
                    for (pair, (cosine, sine)) in head.chunks_exact_mut(2).zip(turns) {
                        let (a, b) = (pair[0], pair[1]);
                        pair[0] = a * cosine - b * sine;
                        pair[1] = a * sine + b * cosine;
                    }
                }
                RopePairs::Halves => {
                    let (low, high) = head[..2 * count].split_at_mut(count);
                    for ((a, b), (cosine, sine)) in low.iter_mut().zip(high).zip(turns) {
                        (*a, *b) = (*a * cosine - *b * sine, *a * sine + *b * cosine);
                    }
                }
            }
        }
    }
}
