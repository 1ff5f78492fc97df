//! Attention of query rows over paged keys and values, by the online softmax: no score outlives its page.
//!
//! Milakov & Gimelshein 2018 (online normalizer), Dao et al. 2022 (tiles); positions are cut into spans of `SPLIT`, each
//! summed by itself and merged in order, as flash-decoding does: a long context keeps all threads busy, and a row's bits
//! don't depend on who summed which span.

mod rows;

use crate::cache::{KvLayout, KvType, PAGE_TOKENS};
use crate::instruction_set::{InstructionSet, dispatch};
use crate::matrix::with_scratch;
use crate::pool::Pool;
use crate::shared::SharedMut;
use rows::{Bytes, Floats, Halves, Part, Rows};

/// Positions that are summed by themselves before they are merged.
const SPLIT: usize = 512;

/// Rows of a register tile: query rows and the heads that share their keys.
const ROWS: usize = 4;

/// Query rows whose pages are read together.
const QUERIES: usize = 16;

/// Below any score: where a row's maximum starts, finite so that differences of it are numbers.
const LOWEST: f32 = -1e30;

/// Queries of one sequence at positions `start … start + rows − 1`, each seeing all positions up to its own.
#[derive(Clone, Copy)]
pub struct Span<'a> {
    /// Page p holds positions p · `PAGE_TOKENS` and on; pages that a window has passed by are never read.
    pub pages: &'a [*const u8],
    pub start: usize,
    pub rows: usize,
}

// SAFETY: the pages are only read, and the caller of `attention` vouches for them.
unsafe impl Sync for Span<'_> {}
unsafe impl Send for Span<'_> {}

/// out (rows, heads, head_dim) = softmax(q · kᵀ / sqrt(head_dim)) · v for all rows of all spans.
///
/// Args:
///     heads: query heads, a multiple of the layout's; consecutive ones share keys and values.
///     spans: their rows lie one after another in `q` and `out`.
///     q: (rows, heads, head_dim), already turned.
///     window: positions that a row sees, its own among them; 0 for all.
///
/// # Safety
/// Every page that the spans' rows see holds the layout's `page_bytes()` bytes, aligned to 4, its positions stored, and
/// nobody writes them meanwhile.
///
/// # Panics
/// Where sizes differ, or a span has fewer pages than positions.
#[allow(clippy::too_many_arguments)]
pub unsafe fn attention(
    pool: &Pool,
    layout: &KvLayout,
    heads: usize,
    spans: &[Span],
    q: &[f32],
    window: usize,
    out: &mut [f32],
) {
    let rows: usize = spans.iter().map(|span| span.rows).sum();
    let width = heads * layout.head_dim;
    assert!(
        layout.kv_heads > 0 && layout.head_dim > 0 && heads.is_multiple_of(layout.kv_heads),
        "expected a multiple of {} heads, got {heads}",
        layout.kv_heads
    );
    assert!(q.len() == rows * width, "expected {rows} query rows of {width}, got {} values", q.len());
    assert!(out.len() == rows * width, "expected room for {rows} rows of {width}, got {} values", out.len());
    let window = if window == 0 { usize::MAX } else { window };
    let mut works = Vec::new();
    let mut before = 0;
    for span in spans {
        let pages = (span.start + span.rows).div_ceil(PAGE_TOKENS);
        assert!(span.pages.len() >= pages, "expected {pages} pages, got {}", span.pages.len());
        for first in (0..span.rows).step_by(QUERIES) {
            for kv_head in 0..layout.kv_heads {
                let count = QUERIES.min(span.rows - first);
                works.push(Work { span: *span, first, count, row: before + first, kv_head, splits: 0..0 });
            }
        }
        before += span.rows;
    }
    for work in &mut works {
        work.splits = work.first_position(window) / SPLIT..work.end().div_ceil(SPLIT);
    }
    let task = Task { layout, heads, window, q, set: InstructionSet::active() };
    let out = SharedMut::new(out);
    let most = works.iter().map(|work| work.splits.len()).max().unwrap_or(0);
    if works.len() >= 2 * pool.threads() || pool.threads() == 1 || most < 2 {
        // The longest first: rows at the end of a prompt see most.
        let last = works.len().saturating_sub(1);
        pool.run(works.len(), &|index| task.whole(&works[last - index], out));
        return;
    }
    // Few rows over a long context: spans are shared out, then merged in order.
    let state = task.state_len() * (heads / layout.kv_heads) * QUERIES.min(rows);
    let parts: Vec<(usize, usize)> =
        works.iter().enumerate().flat_map(|(w, work)| work.splits.clone().map(move |split| (w, split))).collect();
    with_scratch(parts.len() * state * 4, |scratch| {
        // SAFETY: aligned to 8, whole floats.
        let floats = unsafe { std::slice::from_raw_parts_mut(scratch.as_mut_ptr().cast::<f32>(), parts.len() * state) };
        let states = SharedMut::new(floats);
        pool.run(parts.len(), &|index| {
            let (w, split) = parts[index];
            // SAFETY: parts don't overlap.
            let part = unsafe { states.part(index * state, state) };
            task.split(&works[w], split, part);
        });
        pool.run(works.len(), &|w| {
            let first = parts.iter().position(|part| part.0 == w).expect("a row sees itself");
            let each = (0..works[w].splits.len()).map(|split| {
                // SAFETY: the region that wrote them has ended.
                unsafe { &*states.part((first + split) * state, state) }
            });
            task.merge(&works[w], each, out);
        });
    });
}

/// The query rows `first … first + count` of a span, and the heads that share one head of keys and values.
struct Work<'a> {
    span: Span<'a>,
    first: usize,
    count: usize,
    /// The first row's place among all rows.
    row: usize,
    kv_head: usize,
    splits: std::ops::Range<usize>,
}

impl Work<'_> {
    /// Behind the last position that any row sees.
    fn end(&self) -> usize {
        self.span.start + self.first + self.count
    }

    /// The first position that any row sees.
    fn first_position(&self, window: usize) -> usize {
        (self.span.start + self.first + 1).saturating_sub(window)
    }
}

struct Task<'a> {
    layout: &'a KvLayout,
    heads: usize,
    window: usize,
    q: &'a [f32],
    set: InstructionSet,
}

impl Task<'_> {
    /// Floats of a row's state: its maximum, its sum, padding to a vector, its weighted values.
    fn state_len(&self) -> usize {
        16 + self.layout.padded()
    }

    fn group(&self) -> usize {
        self.heads / self.layout.kv_heads
    }

    /// All spans of one work, merged as they come.
    fn whole(&self, work: &Work, out: SharedMut<f32>) {
        let len = self.state_len() * self.group() * work.count;
        with_scratch(work.splits.len() * len * 4, |scratch| {
            // SAFETY: aligned to 8, whole floats.
            let states =
                unsafe { std::slice::from_raw_parts_mut(scratch.as_mut_ptr().cast::<f32>(), work.splits.len() * len) };
            for (split, state) in work.splits.clone().zip(states.chunks_exact_mut(len)) {
                self.split(work, split, state);
            }
            self.merge(work, states.chunks_exact(len), out);
        });
    }

    /// One span of one work: the states of its rows, query rows outermost, then heads.
    fn split(&self, work: &Work, split: usize, states: &mut [f32]) {
        let kind = self.layout.kind;
        let lanes = work.count * self.group();
        for first in (0..lanes).step_by(ROWS) {
            let part = Part { task: self, work, split, first, states };
            match (kind, ROWS.min(lanes - first)) {
                (KvType::F32, 1) => dispatch(self.set, Rows::<Floats, 1>(part, Floats)),
                (KvType::F32, 2) => dispatch(self.set, Rows::<Floats, 2>(part, Floats)),
                (KvType::F32, 3) => dispatch(self.set, Rows::<Floats, 3>(part, Floats)),
                (KvType::F32, _) => dispatch(self.set, Rows::<Floats, 4>(part, Floats)),
                (KvType::F16, 1) => dispatch(self.set, Rows::<Halves, 1>(part, Halves)),
                (KvType::F16, 2) => dispatch(self.set, Rows::<Halves, 2>(part, Halves)),
                (KvType::F16, 3) => dispatch(self.set, Rows::<Halves, 3>(part, Halves)),
                (KvType::F16, _) => dispatch(self.set, Rows::<Halves, 4>(part, Halves)),
                (KvType::Q8_0, 1) => dispatch(self.set, Rows::<Bytes, 1>(part, Bytes)),
                (KvType::Q8_0, 2) => dispatch(self.set, Rows::<Bytes, 2>(part, Bytes)),
                (KvType::Q8_0, 3) => dispatch(self.set, Rows::<Bytes, 3>(part, Bytes)),
                (KvType::Q8_0, _) => dispatch(self.set, Rows::<Bytes, 4>(part, Bytes)),
            }
        }
    }

    fn merge<'s>(&self, work: &Work, splits: impl Iterator<Item = &'s [f32]>, out: SharedMut<f32>) {
        let (len, group, dim) = (self.state_len(), self.group(), self.layout.head_dim);
        let splits: Vec<&[f32]> = splits.collect();
        for query in 0..work.count {
            for head in 0..group {
                let state = |split: &'s [f32]| -> &'s [f32] { &split[(query * group + head) * len..][..len] };
                let most = splits.iter().map(|split| state(split)[0]).fold(LOWEST, f32::max);
                let at = ((work.row + query) * self.heads + work.kv_head * group + head) * dim;
                // SAFETY: rows and heads of different works lie apart.
                let out = unsafe { out.part(at, dim) };
                out.fill(0.0);
                let mut total = 0.0;
                for split in &splits {
                    let state = state(split);
                    let weight = (state[0] - most).exp();
                    total += weight * state[1];
                    out.iter_mut().zip(&state[16..]).for_each(|(out, value)| *out += weight * value);
                }
                out.iter_mut().for_each(|out| *out /= total);
            }
        }
    }
}
