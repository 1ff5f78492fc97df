//! Context shift: a full context forgets its older half and goes on (option `context_shift`).
//!
//! As llama.cpp does it: what stays moves to earlier positions, so its keys are turned back by as much. The text that
//! follows is another one than with a larger context.

use cpu_kernels::PAGE_TOKENS;
use enginecmp_shim::Result;

use crate::kv::{GONE, Pages, Sequence};
use crate::rope::Rope;

/// Drops whole pages after the first and moves the others up; returns how many positions became free.
///
/// The first page stays where there are three or more: attention rests on a text's first tokens (Xiao et al. 2023,
/// arXiv:2309.17453).
pub fn shift(sequence: &mut Sequence, pages: &mut Pages, rope: &Rope) -> Result<usize> {
    let full = sequence.len / PAGE_TOKENS;
    let kept = usize::from(full >= 3);
    let dropped = ((full - kept) / 2).max(1).min(full);
    for page in sequence.pages.drain(kept..kept + dropped) {
        pages.give_back(page);
    }
    let freed = dropped * PAGE_TOKENS;
    sequence.len -= freed;
    let width = pages.layout.kv_heads * pages.layout.head_dim;
    let (mut angles, mut key) = (vec![0.0; rope.angle_count()], vec![0.0; width]);
    rope.angles_back(freed, &mut angles);
    for index in kept..sequence.len.div_ceil(PAGE_TOKENS) {
        if sequence.pages[index] == GONE {
            continue;
        }
        if pages.is_shared(sequence.pages[index]) {
            let own = pages.copy(sequence.pages[index])?;
            pages.give_back(std::mem::replace(&mut sequence.pages[index], own));
        }
        let slots = PAGE_TOKENS.min(sequence.len - index * PAGE_TOKENS);
        for layer in 0..pages.layers() {
            let page = pages.address(sequence.pages[index], layer);
            for slot in 0..slots {
                // SAFETY: a whole page of this layer that no other sequence holds.
                unsafe {
                    pages.layout.load_key(page, slot, &mut key);
                    if rope.angle_count() > 0 {
                        rope.turn(&mut key, pages.layout.head_dim, &angles);
                    }
                    pages.layout.store_key(page, slot, &key);
                }
            }
        }
    }
    Ok(freed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RopeConfig;
    use cpu_kernels::{KvLayout, KvType};

    /// A sequence whose keys are one vector, turned to each position.
    fn filled(len: usize, pages: &mut Pages, rope: &Rope) -> Sequence {
        let mut sequence = Sequence::default();
        sequence.reserve(len, pages).unwrap();
        sequence.len = len;
        for place in 0..len {
            let key = key_at(place, rope);
            for layer in 0..2 {
                let page = pages.address(sequence.pages[place / PAGE_TOKENS], layer);
                // SAFETY: a page of this layer.
                unsafe { pages.layout.store(page, place % PAGE_TOKENS, &key, &[place as f32; 32]) };
            }
        }
        sequence
    }

    fn key_at(place: usize, rope: &Rope) -> Vec<f32> {
        let mut key: Vec<f32> = (0..32).map(|i| (i as f32 * 0.7).sin()).collect();
        let mut angles = vec![0.0; rope.angle_count()];
        rope.angles(place, &mut angles);
        rope.turn(&mut key, 16, &angles);
        key
    }

    #[test]
    fn what_stays_has_the_keys_of_its_new_place_and_shared_pages_are_left_alone() {
        let rope = Rope::new(
            &RopeConfig {
                base: 10_000.0,
                dimensions: 16,
                interleaved: true,
                position_scale: 1.0,
                magnitude: 1.0,
                factors: None,
            },
            None,
        );
        let mut pages = Pages::new(KvLayout { kind: KvType::F32, kv_heads: 2, head_dim: 16 }, 2);
        let len = 5 * PAGE_TOKENS + 3;
        let mut sequence = filled(len, &mut pages, &rope);
        let (first, shared) = (sequence.pages[0], sequence.pages[4]);
        pages.share(shared);
        let freed = shift(&mut sequence, &mut pages, &rope).unwrap();
        assert_eq!((freed, sequence.len), (2 * PAGE_TOKENS, len - 2 * PAGE_TOKENS));
        assert_eq!(sequence.pages[0], first);
        assert!(!sequence.pages.contains(&shared));
        let key = |page, slot| {
            let mut key = vec![0.0; 32];
            // SAFETY: a page of this layer.
            unsafe { pages.layout.load_key(pages.address(page, 1), slot, &mut key) };
            key
        };
        for place in 0..sequence.len {
            let found = key(sequence.pages[place / PAGE_TOKENS], place % PAGE_TOKENS);
            for (found, wanted) in found.iter().zip(key_at(place, &rope)) {
                assert!((found - wanted).abs() < 1e-4);
            }
        }
        assert_eq!(key(shared, 5), key_at(4 * PAGE_TOKENS + 5, &rope));
    }
}
