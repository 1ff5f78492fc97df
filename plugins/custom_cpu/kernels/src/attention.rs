//! Attention of query rows over paged keys and values, by the online softmax: no score outlives its page.
//!
//! Milakov & Gimelshein 2018 (online normalizer), Dao et al. 2022 (tiles); positions are cut into spans of `SPLIT`, each
//! summed by itself and merged in order, as flash-decoding does: a long context keeps all threads busy, and a row's bits
//! don't depend on who summed which span.

use crate::cache::{HeadPlanes, KvLayout, KvType, PAGE_TOKENS, SCALED, STRIP};
use crate::float16::f16_to_f32;
use crate::instruction_set::{InstructionSet, dispatch};
use crate::math::exp;
use crate::matrix::with_scratch;
use crate::pool::Pool;
use crate::shared::SharedMut;
use crate::simd::{Kernel, Simd};

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

/// Elements of a cache, as vectors and with their scales.
trait Elements: Copy {
    const BYTES: usize;
    const SCALES: bool;
    unsafe fn load<S: Simd>(p: *const u8) -> S::F;
}

#[derive(Clone, Copy)]
struct Floats;
#[derive(Clone, Copy)]
struct Halves;
#[derive(Clone, Copy)]
struct Bytes;

impl Elements for Floats {
    const BYTES: usize = 4;
    const SCALES: bool = false;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        // SAFETY: inside the page, here and below.
        unsafe { S::load(p.cast()) }
    }
}

impl Elements for Halves {
    const BYTES: usize = 2;
    const SCALES: bool = false;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        unsafe { S::load_f16(p.cast()) }
    }
}

impl Elements for Bytes {
    const BYTES: usize = 1;
    const SCALES: bool = true;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        unsafe { S::load_i8(p.cast()) }
    }
}

/// Rows `first … first + N` of a work (query outermost, then head) over one span.
struct Part<'a> {
    task: &'a Task<'a>,
    work: &'a Work<'a>,
    split: usize,
    first: usize,
    states: &'a mut [f32],
}

struct Rows<'a, E, const N: usize>(Part<'a>, E);

impl<E: Elements, const N: usize> Kernel for Rows<'_, E, N> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Part { task, work, split, first, states } = self.0;
        let (layout, group) = (task.layout, task.group());
        let (dim, padded, planes) = (layout.head_dim, layout.padded(), layout.planes());
        let scale = 1.0 / (dim as f32).sqrt();
        // Queries as the strips want them, (head_dim, N), and the positions that each row sees.
        let mut queries = [0.0f32; 256 * ROWS];
        let mut heap = Vec::new();
        let queries: &mut [f32] = if dim * N <= queries.len() {
            &mut queries[..dim * N]
        } else {
            heap.resize(dim * N, 0.0);
            &mut heap
        };
        let (mut from, mut to) = ([0usize; N], [0usize; N]);
        for row in 0..N {
            let (query, head) = ((first + row) / group, (first + row) % group);
            let at = ((work.row + query) * task.heads + work.kv_head * group + head) * dim;
            for (i, value) in task.q[at..at + dim].iter().enumerate() {
                queries[i * N + row] = value * scale;
            }
            to[row] = work.span.start + work.first + query + 1;
            from[row] = to[row].saturating_sub(task.window);
        }
        let len = task.state_len();
        let states = &mut states[first * len..(first + N) * len];
        for state in states.chunks_exact_mut(len) {
            state.fill(0.0);
            state[0] = LOWEST;
        }
        let start = from.iter().fold(usize::MAX, |a, b| a.min(*b)).max(split * SPLIT);
        let end = to.iter().fold(0, |a, b| a.max(*b)).min((split + 1) * SPLIT);
        let mut page = start / PAGE_TOKENS;
        while page * PAGE_TOKENS < end {
            let base = page * PAGE_TOKENS;
            // SAFETY: the caller of `attention` vouches for pages that rows see.
            unsafe {
                let keys = work.span.pages[page].add(work.kv_head * planes.bytes);
                let mut scores = [[0.0f32; PAGE_TOKENS]; N];
                // Enough sums at a time to keep the units busy while each waits for its last addition.
                let mut slot = 0;
                while slot < PAGE_TOKENS && base + slot < end {
                    if N <= 2 && S::LANES <= 8 {
                        slot_scores::<S, E, N, 4>(keys, &planes, layout, slot, queries, &mut scores);
                        slot += 4 * S::LANES;
                    } else {
                        slot_scores::<S, E, N, 2>(keys, &planes, layout, slot, queries, &mut scores);
                        slot += 2 * S::LANES;
                    }
                }
                for row in 0..N {
                    let state = &mut states[row * len..(row + 1) * len];
                    let scores = &mut scores[row];
                    if base < from[row] || base + PAGE_TOKENS > to[row] {
                        for (slot, score) in scores.iter_mut().enumerate() {
                            let seen = base + slot >= from[row] && base + slot < to[row];
                            *score = if seen { *score } else { f32::NEG_INFINITY };
                        }
                    }
                    absorb::<S>(scores, state);
                }
                let slots = start.max(base) - base..end.min(base + PAGE_TOKENS) - base;
                let values = keys.add(planes.values);
                let scales = keys.add(planes.value_scales).cast::<u16>();
                add_values::<S, E, N>(values, scales, layout, padded, slots, &scores, states, len);
            }
            page += 1;
        }
    }
}

/// Turns a page's scores into weights under the row's maximum so far, and brings its state under the new one.
#[inline(always)]
unsafe fn absorb<S: Simd>(scores: &mut [f32; PAGE_TOKENS], state: &mut [f32]) {
    // SAFETY: whole vectors of the page and the state, whose values start at 16.
    unsafe {
        let p = scores.as_mut_ptr();
        let mut lanes = [LOWEST; 16];
        let mut most = S::splat(state[0]);
        for at in (0..PAGE_TOKENS).step_by(S::LANES) {
            most = S::max(S::load(p.add(at)), most);
        }
        S::store(lanes.as_mut_ptr(), most);
        let most = lanes.iter().fold(LOWEST, |a, b| if *b > a { *b } else { a });
        if most > state[0] {
            let rescale = exp::<S>(state[0] - most);
            state[1] *= rescale;
            for at in (16..state.len()).step_by(S::LANES) {
                let p = state.as_mut_ptr().add(at);
                S::store(p, S::mul(S::load(p), S::splat(rescale)));
            }
            state[0] = most;
        }
        let mut sums = S::splat(0.0);
        for at in (0..PAGE_TOKENS).step_by(S::LANES) {
            let weights = S::exp(S::add(S::load(p.add(at)), S::splat(-most)));
            sums = S::add(sums, weights);
            S::store(p.add(at), weights);
        }
        let mut lanes = [0.0; 16];
        S::store(lanes.as_mut_ptr(), sums);
        for width in [8, 4, 2, 1] {
            for lane in 0..width {
                lanes[lane] += lanes[lane + width];
            }
        }
        state[1] += lanes[0];
    }
}

/// Scores of the `V` vectors of positions from `slot` on, for N rows.
#[inline(always)]
unsafe fn slot_scores<S: Simd, E: Elements, const N: usize, const V: usize>(
    keys: *const u8,
    planes: &HeadPlanes,
    layout: &KvLayout,
    slot: usize,
    queries: &[f32],
    scores: &mut [[f32; PAGE_TOKENS]; N],
) {
    // SAFETY: inside the page; `queries` holds head_dim · N.
    unsafe {
        let dim = layout.head_dim;
        let (mut keys_at, mut scales_at) = ([keys; V], [keys.add(planes.key_scales).cast::<u16>(); V]);
        for v in 0..V {
            let (strip, lane) = ((slot + v * S::LANES) / STRIP, (slot + v * S::LANES) % STRIP);
            keys_at[v] = keys.add((strip * dim * STRIP + lane) * E::BYTES);
            scales_at[v] = scales_at[v].add(strip * layout.scales() * STRIP + lane);
        }
        let mut sums = [[S::splat(0.0); N]; V];
        let mut block = 0;
        while block < dim {
            // Without scales all dimensions are one block.
            let last = if E::SCALES { dim.min(block + SCALED) } else { dim };
            let mut part = [[S::splat(0.0); N]; V];
            for d in block..last {
                let mut key = [S::splat(0.0); V];
                for v in 0..V {
                    key[v] = E::load::<S>(keys_at[v].add(d * STRIP * E::BYTES));
                }
                for row in 0..N {
                    let query = S::splat(*queries.get_unchecked(d * N + row));
                    for v in 0..V {
                        part[v][row] = S::fma(key[v], query, part[v][row]);
                    }
                }
            }
            for v in 0..V {
                if E::SCALES {
                    let scale = S::load_f16(scales_at[v].add(block / SCALED * STRIP));
                    for row in 0..N {
                        sums[v][row] = S::fma(part[v][row], scale, sums[v][row]);
                    }
                } else {
                    sums[v] = part[v];
                }
            }
            block = last;
        }
        for v in 0..V {
            for row in 0..N {
                S::store(scores[row].as_mut_ptr().add(slot + v * S::LANES), sums[v][row]);
            }
        }
    }
}

/// Adds a page's weighted values to the rows' states.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn add_values<S: Simd, E: Elements, const N: usize>(
    values: *const u8,
    scales: *const u16,
    layout: &KvLayout,
    padded: usize,
    slots: std::ops::Range<usize>,
    weights: &[[f32; PAGE_TOKENS]; N],
    states: &mut [f32],
    len: usize,
) {
    let mut d = 0;
    // Enough sums at a time to keep the units busy; `padded` is a multiple of 16.
    // SAFETY: inside the page and the states.
    unsafe {
        while d + 4 * S::LANES <= padded && N <= 2 {
            add_vectors::<S, E, N, 4>(values, scales, layout, padded, slots.clone(), weights, states, len, d);
            d += 4 * S::LANES;
        }
        while d + 2 * S::LANES <= padded {
            add_vectors::<S, E, N, 2>(values, scales, layout, padded, slots.clone(), weights, states, len, d);
            d += 2 * S::LANES;
        }
        while d < padded {
            add_vectors::<S, E, N, 1>(values, scales, layout, padded, slots.clone(), weights, states, len, d);
            d += S::LANES;
        }
    }
}

/// The same for the `V` vectors of dimensions from `d` on.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn add_vectors<S: Simd, E: Elements, const N: usize, const V: usize>(
    values: *const u8,
    scales: *const u16,
    layout: &KvLayout,
    padded: usize,
    slots: std::ops::Range<usize>,
    weights: &[[f32; PAGE_TOKENS]; N],
    states: &mut [f32],
    len: usize,
    d: usize,
) {
    // SAFETY: inside the page and the states.
    unsafe {
        let state = states.as_mut_ptr().add(16 + d);
        let mut sums = [[S::splat(0.0); N]; V];
        for v in 0..V {
            for row in 0..N {
                sums[v][row] = S::load(state.add(row * len + v * S::LANES));
            }
        }
        for slot in slots {
            let mut value = [S::splat(0.0); V];
            for v in 0..V {
                value[v] = E::load::<S>(values.add((slot * padded + d + v * S::LANES) * E::BYTES));
                if E::SCALES {
                    let scale = *scales.add(slot * layout.scales() + (d + v * S::LANES) / SCALED);
                    value[v] = S::mul(value[v], S::splat(f16_to_f32(scale)));
                }
            }
            for row in 0..N {
                let weight = S::splat(*weights[row].get_unchecked(slot));
                for v in 0..V {
                    sums[v][row] = S::fma(value[v], weight, sums[v][row]);
                }
            }
        }
        for v in 0..V {
            for row in 0..N {
                S::store(state.add(row * len + v * S::LANES), sums[v][row]);
            }
        }
    }
}
