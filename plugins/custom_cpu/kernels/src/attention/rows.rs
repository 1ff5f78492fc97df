//! The register tiles of attention: rows that share keys over the pages of one span.

use super::{LOWEST, ROWS, SPLIT, Task, Work};
use crate::cache::{HeadPlanes, KvLayout, PAGE_TOKENS, SCALED, STRIP};
use crate::float16::f16_to_f32;
use crate::math::exp;
use crate::simd::{Kernel, Simd};

/// Elements of a cache, as vectors and with their scales.
pub(super) trait Elements: Copy {
    const BYTES: usize;
    const SCALES: bool;
    unsafe fn load<S: Simd>(p: *const u8) -> S::F;
}

#[derive(Clone, Copy)]
pub(super) struct Floats;
#[derive(Clone, Copy)]
pub(super) struct Halves;
#[derive(Clone, Copy)]
pub(super) struct Bytes;

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
pub(super) struct Part<'a> {
    pub task: &'a Task<'a>,
    pub work: &'a Work<'a>,
    pub split: usize,
    pub first: usize,
    pub states: &'a mut [f32],
}

pub(super) struct Rows<'a, E, const N: usize>(pub Part<'a>, pub E);

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
