//! Attention against softmax in double over the cache's own values; against itself in other company, bit by bit.

use crate::common::{Random, dot, on_each_set};
use cpu_kernels::{KvLayout, KvType, PAGE_TOKENS, Pool, Span, attention};

/// Pages of one sequence, filled with random keys and values; what was never stored is no number.
struct Sequence {
    layout: KvLayout,
    pages: Vec<Vec<u32>>,
}

impl Sequence {
    fn new(random: &mut Random, layout: KvLayout, positions: usize) -> Sequence {
        let words = layout.page_bytes() / 4;
        let mut pages = vec![vec![u32::MAX; words]; positions.div_ceil(PAGE_TOKENS)];
        for position in 0..positions {
            let (keys, values) =
                (random.floats(layout.kv_heads * layout.head_dim), random.floats(layout.kv_heads * layout.head_dim));
            let page = pages[position / PAGE_TOKENS].as_mut_ptr().cast();
            // SAFETY: a page of the layout's size, nobody else's.
            unsafe { layout.store(page, position % PAGE_TOKENS, &keys, &values) };
        }
        Sequence { layout, pages }
    }

    fn pointers(&self) -> Vec<*const u8> {
        self.pages.iter().map(|page| page.as_ptr().cast()).collect()
    }

    /// (keys, values) of a position.
    fn read(&self, position: usize) -> (Vec<f32>, Vec<f32>) {
        let count = self.layout.kv_heads * self.layout.head_dim;
        let (mut keys, mut values) = (vec![0.0; count], vec![0.0; count]);
        let page = self.pages[position / PAGE_TOKENS].as_ptr().cast();
        // SAFETY: stored above.
        unsafe {
            self.layout.load_key(page, position % PAGE_TOKENS, &mut keys);
            self.layout.load_value(page, position % PAGE_TOKENS, &mut values);
        }
        (keys, values)
    }

    /// One row's attention in double.
    fn reference(&self, heads: usize, position: usize, q: &[f32], window: usize) -> Vec<f64> {
        let (dim, group) = (self.layout.head_dim, heads / self.layout.kv_heads);
        let first = if window == 0 { 0 } else { (position + 1).saturating_sub(window) };
        let cache: Vec<_> = (first..=position).map(|position| self.read(position)).collect();
        let mut out = Vec::new();
        for (head, q) in q.chunks_exact(dim).enumerate() {
            let at = head / group * dim;
            let scores: Vec<f64> =
                cache.iter().map(|(keys, _)| dot(&keys[at..at + dim], q).0 / (dim as f64).sqrt()).collect();
            let most = scores.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
            let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
            let total: f64 = weights.iter().sum();
            for d in 0..dim {
                let sum: f64 = weights.iter().zip(&cache).map(|(w, (_, values))| w * f64::from(values[at + d])).sum();
                out.push(sum / total);
            }
        }
        out
    }
}

fn run(pool: &Pool, layout: &KvLayout, heads: usize, spans: &[Span], q: &[f32], window: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; q.len()];
    // SAFETY: the pages outlive the call and hold all positions.
    unsafe { attention(pool, layout, heads, spans, q, window, &mut out) };
    out
}

/// (kv heads, heads, head_dim, start, rows, window)
const SHAPES: [(usize, usize, usize, usize, usize, usize); 9] = [
    (1, 1, 2, 0, 1, 0),
    (3, 9, 64, 0, 33, 0),
    (2, 2, 16, 40, 5, 0),
    (1, 7, 80, 100, 3, 7),
    (2, 4, 96, 530, 20, 0),
    (1, 3, 64, 1100, 1, 0),
    (1, 2, 36, 1030, 2, 500),
    (2, 6, 128, 63, 2, 1),
    (1, 1, 300, 31, 2, 0),
];

#[test]
fn test_attention_equals_softmax_in_double() {
    let pools = [Pool::new(1), Pool::new(4)];
    on_each_set(|set| {
        let mut random = Random(3);
        for kind in [KvType::F32, KvType::F16, KvType::Q8_0] {
            for (kv_heads, heads, head_dim, start, rows, window) in SHAPES {
                let layout = KvLayout { kind, kv_heads, head_dim };
                let sequence = Sequence::new(&mut random, layout, start + rows);
                let width = heads * head_dim;
                let q: Vec<f32> = random.floats(rows * width).iter().map(|value| value * 5.0).collect();
                let pages = sequence.pointers();
                for pool in &pools {
                    let out = run(pool, &layout, heads, &[Span { pages: &pages, start, rows }], &q, window);
                    for (row, out) in out.chunks_exact(width).enumerate() {
                        let q = &q[row * width..(row + 1) * width];
                        let expected = sequence.reference(heads, start + row, q, window);
                        for (i, (out, expected)) in out.iter().zip(&expected).enumerate() {
                            assert!(
                                (f64::from(*out) - expected).abs() < 1e-5,
                                "{} {layout:?} start {start} row {row} value {i}: {out} for {expected}",
                                set.name()
                            );
                        }
                    }
                }
            }
        }
    });
}

#[test]
fn test_a_row_attends_the_same_alone_in_any_company_and_on_any_threads() {
    let pools = [Pool::new(1), Pool::new(2), Pool::new(7)];
    on_each_set(|set| {
        let mut random = Random(7);
        for (kind, window) in [(KvType::F32, 0), (KvType::F16, 0), (KvType::F16, 40), (KvType::Q8_0, 600)] {
            let (heads, rows, start) = (6, 37, 1003);
            let layout = KvLayout { kind, kv_heads: 2, head_dim: 32 };
            let width = heads * layout.head_dim;
            let long = Sequence::new(&mut random, layout, start + rows);
            let short = Sequence::new(&mut random, layout, 5);
            let q = random.floats((rows + 5) * width);
            let (pages, short_pages) = (long.pointers(), short.pointers());
            let alone: Vec<f32> = (0..rows)
                .flat_map(|row| {
                    let q = &q[row * width..(row + 1) * width];
                    run(&pools[0], &layout, heads, &[Span { pages: &pages, start: start + row, rows: 1 }], q, window)
                })
                .collect();
            for pool in &pools {
                let spans = [
                    Span { pages: &pages, start, rows: 4 },
                    Span { pages: &pages, start: start + 4, rows: rows - 4 },
                    Span { pages: &short_pages, start: 0, rows: 5 },
                ];
                let out = run(pool, &layout, heads, &spans, &q, window);
                let same = alone.iter().zip(&out).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{} {layout:?} window {window} {} threads", set.name(), pool.threads());
            }
        }
    });
}

#[test]
fn test_pages_hold_what_was_stored() {
    let mut random = Random(11);
    for (kind, error) in [(KvType::F32, 0.0), (KvType::F16, 5e-4), (KvType::Q8_0, 5e-3)] {
        for head_dim in [2, 16, 36, 80, 96, 256] {
            let layout = KvLayout { kind, kv_heads: 3, head_dim };
            let mut page = vec![u32::MAX; layout.page_bytes() / 4];
            let stored: Vec<_> =
                (0..PAGE_TOKENS).map(|_| (random.floats(3 * head_dim), random.floats(3 * head_dim))).collect();
            let turned = random.floats(3 * head_dim);
            let mut read = vec![0.0; 3 * head_dim];
            let page = page.as_mut_ptr().cast::<u8>();
            let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= error);
            // SAFETY: a page of the layout's size, nobody else's.
            unsafe {
                for (slot, (keys, values)) in stored.iter().enumerate() {
                    layout.store(page, slot, keys, values);
                }
                layout.store_key(page, 7, &turned);
                for (slot, (keys, values)) in stored.iter().enumerate() {
                    layout.load_key(page, slot, &mut read);
                    assert!(close(&read, if slot == 7 { &turned } else { keys }), "{layout:?} keys {slot}");
                    layout.load_value(page, slot, &mut read);
                    assert!(close(&read, values), "{layout:?} values {slot}");
                }
            }
        }
    }
}
