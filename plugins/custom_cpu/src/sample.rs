//! One token id drawn from a distribution: temperature, then top-k, then top-p.

use cpu_kernels::argmax;

/// How to draw.
#[derive(Debug, Clone, Copy)]
pub struct Strategy {
    /// 0 takes the most likely id.
    pub temperature: f64,
    /// The most likely ids that stay; 0 for all.
    pub top_k: usize,
    /// Of these, the fewest that reach this share (Holtzman et al. 2020, arXiv:1904.09751, eq. 2); 1 for all.
    pub top_p: f64,
}

/// Draws from one vector of logits, again and again.
#[cfg(any(feature = "python", test))]
pub struct Draws {
    logits: Vec<f32>,
    sampler: Sampler,
}

#[cfg(any(feature = "python", test))]
impl Draws {
    pub fn new(logits: Vec<f32>, strategy: Strategy, seed: u64) -> Self {
        Self { logits, sampler: Sampler::new(strategy, seed) }
    }

    /// Everything from the logits to the id, every time anew.
    pub fn draw(&mut self) -> u32 {
        self.sampler.draw(&self.logits)
    }
}

/// Draws one id after the other, each from logits of its own.
#[derive(Debug, Clone)]
pub struct Sampler {
    strategy: Strategy,
    random: SplitMix,
    /// Ids still in, most likely first where they had to be sorted; and e^(logit / temperature) of each.
    ids: Vec<u32>,
    chances: Vec<f64>,
}

impl Sampler {
    pub fn new(strategy: Strategy, seed: u64) -> Self {
        Self { strategy, random: SplitMix(seed), ids: Vec::new(), chances: Vec::new() }
    }

    pub fn draw(&mut self, logits: &[f32]) -> u32 {
        let Strategy { temperature, top_k, top_p } = self.strategy;
        if temperature == 0.0 || top_k == 1 {
            return argmax(logits) as u32;
        }
        let ids = &mut self.ids;
        ids.clear();
        ids.extend(0..logits.len() as u32);
        // Equal logits by id, so that what stays does not depend on how the sort went.
        let order = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        if 0 < top_k && top_k < ids.len() {
            ids.select_nth_unstable_by(top_k - 1, order);
            ids.truncate(top_k);
        }
        if top_p < 1.0 {
            ids.sort_unstable_by(order);
        }
        let most = ids.iter().map(|id| f64::from(logits[*id as usize])).fold(f64::NEG_INFINITY, f64::max);
        self.chances.clear();
        self.chances.extend(ids.iter().map(|id| ((f64::from(logits[*id as usize]) - most) / temperature).exp()));
        let mut total: f64 = self.chances.iter().sum();
        if top_p < 1.0 {
            let mut sum = 0.0;
            let reached = self.chances.iter().position(|chance| {
                sum += chance;
                sum >= top_p * total
            });
            if let Some(last) = reached {
                self.chances.truncate(last + 1);
                total = sum;
            }
        }
        let mut left = self.random.next() * total;
        let found = self.chances.iter().position(|chance| {
            left -= chance;
            left < 0.0
        });
        ids[found.unwrap_or(self.chances.len() - 1)]
    }
}

/// SplitMix64 (Steele et al. 2014, "Fast splittable pseudorandom number generators").
#[derive(Debug, Clone)]
struct SplitMix(u64);

impl SplitMix {
    /// A number in [0, 1).
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(logits: &[f32], strategy: Strategy) -> Vec<usize> {
        let mut draws = Draws::new(logits.to_vec(), strategy, 7);
        let mut counts = vec![0; logits.len()];
        (0..20_000).for_each(|_| counts[draws.draw() as usize] += 1);
        counts
    }

    #[test]
    fn draws_follow_what_is_left() {
        // Chances 1, 2, 4, 1 of 8 at temperature 1.
        let logits = [0.0, 2_f32.ln(), 4_f32.ln(), 0.0];
        let all = Strategy { temperature: 1.0, top_k: 0, top_p: 1.0 };
        for (strategy, shares) in [
            (all, [1.0 / 8.0, 2.0 / 8.0, 4.0 / 8.0, 1.0 / 8.0]),
            (Strategy { top_k: 2, ..all }, [0.0, 2.0 / 6.0, 4.0 / 6.0, 0.0]),
            (Strategy { top_p: 0.6, ..all }, [0.0, 2.0 / 6.0, 4.0 / 6.0, 0.0]),
            (Strategy { top_p: 0.5, ..all }, [0.0, 0.0, 1.0, 0.0]),
            // Of the three that top-k leaves (the first of the two equal ones), 6/7 reach 0.8.
            (Strategy { top_k: 3, top_p: 0.8, ..all }, [0.0, 2.0 / 6.0, 4.0 / 6.0, 0.0]),
            (Strategy { temperature: 0.5, ..all }, [1.0 / 22.0, 4.0 / 22.0, 16.0 / 22.0, 1.0 / 22.0]),
            (Strategy { temperature: 0.0, ..all }, [0.0, 0.0, 1.0, 0.0]),
        ] {
            for (count, share) in counts(&logits, strategy).into_iter().zip(shares) {
                // 6 standard deviations of a binomial.
                let limit = 6.0 * (20_000.0_f64 * share * (1.0 - share)).sqrt();
                assert!((count as f64 - 20_000.0 * share).abs() <= limit, "{strategy:?}: {count} for {share}");
            }
        }
    }

    #[test]
    fn logits_that_are_no_numbers_still_draw_an_id() {
        for logits in [vec![f32::NAN; 3], vec![f32::NEG_INFINITY; 3]] {
            let strategy = Strategy { temperature: 1.0, top_k: 2, top_p: 0.5 };
            assert!(Draws::new(logits, strategy, 1).draw() < 3);
        }
    }
}
