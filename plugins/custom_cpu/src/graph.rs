//! One pass of a model: some tokens of some sequences, all of their rows together.

use std::ops::Range;
use std::sync::Arc;

use cpu_kernels::{
    PAGE_TOKENS, Pool, Span, add, argmax, attention, gelu, layer_norm, matmul, matmul_many, rms_norm, silu_mul,
};
use enginecmp_shim::Result;

use crate::config::{Config, Norm};
use crate::kv::{PageId, Pages};
use crate::model::{Block, Model};
use crate::profile::{Component, Stopwatch};
use crate::rope::Rope;
use crate::rows::{each, each_row};
use crate::weights::{Linear, NormWeights};

/// Rows of logits that are computed at once: bounds their memory.
const LOGITS_ROWS: usize = 64;

/// Which rows of a piece the head is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outputs {
    None,
    Last,
    All,
}

/// Neighbouring tokens of one sequence.
pub struct Piece<'a> {
    pub ids: &'a [u32],
    /// Position of the first.
    pub start: usize,
    /// The sequence's pages, with room for these tokens.
    pub pages: &'a [PageId],
    pub outputs: Outputs,
}

/// A model and the buffers of its passes.
pub struct Graph {
    pub model: Arc<Model>,
    pub pool: Arc<Pool>,
    pub watch: Stopwatch,
    /// Positions that a token may look back on, itself included; 0 means all of them.
    window: usize,
    buffers: Buffers,
    /// Normalized final states of the rows that were asked for, (rows, width).
    outputs: Vec<f32>,
    logits: Vec<f32>,
}

/// What runs layers: constants, threads and buffers.
pub struct Layers<'a> {
    pub pool: &'a Pool,
    pub config: &'a Config,
    pub rope: Option<&'a Rope>,
    /// Positions that a token may look back on, itself included; 0 means all of them.
    pub window: usize,
    pub watch: &'a mut Stopwatch,
    pub buffers: &'a mut Buffers,
}

#[derive(Default)]
pub struct Buffers {
    /// Hidden states, (rows, width).
    pub x: Vec<f32>,
    normed: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    mixed: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    added: Vec<f32>,
    /// Of every row, as `Rope::angles` makes them.
    pub angles: Vec<f32>,
}

impl Graph {
    pub fn new(model: Arc<Model>, pool: Arc<Pool>, window: usize) -> Self {
        let (buffers, outputs, logits) = (Buffers::default(), Vec::new(), Vec::new());
        Self { model, pool, watch: Stopwatch::default(), window, buffers, outputs, logits }
    }

    /// Runs pieces of different sequences, keeps their keys and values, and returns how many rows of output there are,
    /// in the order of the pieces.
    pub fn run(&mut self, pieces: &[Piece<'_>], cache: &mut Pages) -> Result<usize> {
        let rows: usize = pieces.iter().map(|piece| piece.ids.len()).sum();
        self.embed(pieces, rows);
        let mut layers = Layers {
            pool: &self.pool,
            config: &self.model.config,
            rope: self.model.rope.as_ref(),
            window: self.window,
            watch: &mut self.watch,
            buffers: &mut self.buffers,
        };
        for (layer, block) in self.model.blocks.iter().enumerate() {
            layers.run(block, pieces, cache, layer)?;
        }
        Ok(self.gather(pieces))
    }

    /// Logits of some rows of output, row after row.
    pub fn logits(&mut self, rows: Range<usize>) -> Result<&[f32]> {
        let (width, vocabulary) = (self.model.config.width, self.model.vocabulary);
        let count = rows.len();
        let logits = sized(&mut self.logits, count * vocabulary);
        let head = self.model.head.matrix(&self.pool)?;
        matmul(&self.pool, head, &self.outputs[rows.start * width..rows.end * width], count, logits);
        add_bias(&self.pool, logits, &self.model.head);
        self.watch.charge(Component::LmHead);
        Ok(&self.logits[..count * vocabulary])
    }

    /// The most likely id after each of the first `rows` rows of output; of equals the first.
    pub fn choose(&mut self, rows: usize) -> Result<Vec<u32>> {
        self.choose_by(rows, |_, logits| argmax(logits) as u32)
    }

    /// An id for each of the first `rows` rows of output; `pick` chooses it by the row's number and logits.
    pub fn choose_by(&mut self, rows: usize, mut pick: impl FnMut(usize, &[f32]) -> u32) -> Result<Vec<u32>> {
        let vocabulary = self.model.vocabulary;
        let mut chosen = Vec::with_capacity(rows);
        for start in (0..rows).step_by(LOGITS_ROWS) {
            let count = LOGITS_ROWS.min(rows - start);
            self.logits(start..start + count)?;
            let logits = &self.logits[..count * vocabulary];
            chosen.extend(logits.chunks_exact(vocabulary).enumerate().map(|(index, row)| pick(start + index, row)));
            self.watch.charge(Component::Sampling);
        }
        Ok(chosen)
    }

    /// Calls `keep` with logits of all `rows` rows of output, some at a time.
    pub fn all_logits(&mut self, rows: usize, mut keep: impl FnMut(&[f32])) -> Result<()> {
        for start in (0..rows).step_by(LOGITS_ROWS) {
            keep(self.logits(start..rows.min(start + LOGITS_ROWS))?);
        }
        Ok(())
    }

    fn embed(&mut self, pieces: &[Piece<'_>], rows: usize) {
        let (model, buffers) = (&self.model, &mut self.buffers);
        let width = model.config.width;
        let places: Vec<(u32, usize)> =
            pieces.iter().flat_map(|piece| piece.ids.iter().copied().zip(piece.start..)).collect();
        let x = sized(&mut buffers.x, rows * width);
        each_row(&self.pool, x, width, &|index, row| model.embedding.row(places[index].0 as usize, row));
        if let Some(learned) = &model.positions {
            let mut position = vec![0.0; width];
            for (row, (_, place)) in x.chunks_exact_mut(width).zip(&places) {
                learned.row(*place, &mut position);
                add(row, &position);
            }
        }
        self.watch.charge(Component::Embedding);
        if let Some(rope) = &model.rope {
            let count = rope.angle_count();
            let angles = sized(&mut buffers.angles, rows * count);
            if count > 0 {
                each_row(&self.pool, angles, count, &|index, row| rope.angles(places[index].1, row));
            }
        }
        self.watch.charge(Component::Rope);
    }

    /// Normalizes the rows that the head is wanted for; returns how many they are.
    fn gather(&mut self, pieces: &[Piece<'_>]) -> usize {
        let width = self.model.config.width;
        let mut wanted = Vec::new();
        let mut start = 0;
        for piece in pieces {
            let end = start + piece.ids.len();
            let first = match piece.outputs {
                Outputs::None => end,
                Outputs::Last => end - 1,
                Outputs::All => start,
            };
            wanted.extend_from_slice(&self.buffers.x[first * width..end * width]);
            start = end;
        }
        normalize(&self.pool, &self.model.config, &self.model.output_norm, &wanted, &mut self.outputs);
        self.watch.charge(Component::Norm);
        wanted.len() / width
    }
}

impl Layers<'_> {
    /// Takes the hidden states in the buffers through one layer, whose place in the cache is `layer`.
    pub fn run(&mut self, block: &Block, pieces: &[Piece<'_>], cache: &mut Pages, layer: usize) -> Result<()> {
        self.attend(block, pieces, cache, layer)?;
        self.feed_forward(block)
    }

    /// x += attention(norm(x)), with keys and values of these rows in the cache from now on.
    fn attend(&mut self, block: &Block, pieces: &[Piece<'_>], cache: &mut Pages, layer: usize) -> Result<()> {
        let (pool, config, buffers) = (self.pool, self.config, &mut *self.buffers);
        let (head_dim, rows) = (config.head_dim, buffers.x.len() / config.width);
        let (q_width, kv_width) = (config.heads * head_dim, config.kv_heads * head_dim);
        normalize(pool, config, &block.attn_norm, &buffers.x, &mut buffers.normed);
        self.watch.charge(Component::Norm);
        let q = sized(&mut buffers.q, rows * q_width);
        let k = sized(&mut buffers.k, rows * kv_width);
        let v = sized(&mut buffers.v, rows * kv_width);
        let [wq, wk, wv] = &block.qkv;
        let matrices = [wq.matrix(pool)?, wk.matrix(pool)?, wv.matrix(pool)?];
        matmul_many(pool, &matrices, &buffers.normed, rows, &mut [&mut *q, &mut *k, &mut *v]);
        for (values, linear) in [(&mut *q, wq), (&mut *k, wk), (&mut *v, wv)] {
            add_bias(pool, values, linear);
        }
        self.watch.charge(Component::Attention);
        if let Some(rope) = self.rope.filter(|rope| rope.angle_count() > 0) {
            let (angles, count) = (&buffers.angles, rope.angle_count());
            for (values, width) in [(&mut *q, q_width), (&mut *k, kv_width)] {
                each_row(pool, values, width, &|index, row| {
                    rope.turn(row, head_dim, &angles[index * count..(index + 1) * count]);
                });
            }
        }
        self.watch.charge(Component::Rope);
        store(pool, pieces, cache, layer, k, v);
        let addresses: Vec<Vec<*const u8>> = pieces
            .iter()
            .map(|piece| piece.pages.iter().map(|page| cache.address(*page, layer).cast_const()).collect())
            .collect();
        let spans: Vec<Span<'_>> = pieces
            .iter()
            .zip(&addresses)
            .map(|(piece, pages)| Span { pages, start: piece.start, rows: piece.ids.len() })
            .collect();
        let mixed = sized(&mut buffers.mixed, rows * q_width);
        // SAFETY: what the rows see is stored, and `cache` is borrowed mutably, so nobody else writes to it.
        unsafe { attention(pool, &cache.layout, config.heads, &spans, q, self.window, mixed) };
        project(pool, &block.attn_output, mixed, rows, &mut buffers.added)?;
        self.watch.charge(Component::Attention);
        add(&mut buffers.x, &buffers.added);
        self.watch.charge(Component::Other);
        Ok(())
    }

    /// x += feed_forward(norm(x)).
    fn feed_forward(&mut self, block: &Block) -> Result<()> {
        let (pool, config, buffers) = (self.pool, self.config, &mut *self.buffers);
        let (rows, inner) = (buffers.x.len() / config.width, block.up.outputs());
        normalize(pool, config, &block.ffn_norm, &buffers.x, &mut buffers.normed);
        self.watch.charge(Component::Norm);
        let up = sized(&mut buffers.up, rows * inner);
        if let Some(linear) = &block.gate {
            let gate = sized(&mut buffers.gate, rows * inner);
            let matrices = [linear.matrix(pool)?, block.up.matrix(pool)?];
            matmul_many(pool, &matrices, &buffers.normed, rows, &mut [&mut *gate, &mut *up]);
            add_bias(pool, gate, linear);
            add_bias(pool, up, &block.up);
            let up = &*up;
            each_row(pool, gate, inner, &|index, row| silu_mul(row, &up[index * inner..(index + 1) * inner]));
            project(pool, &block.down, gate, rows, &mut buffers.added)?;
        } else {
            matmul(pool, block.up.matrix(pool)?, &buffers.normed, rows, up);
            add_bias(pool, up, &block.up);
            each_row(pool, up, inner, &|_, row| gelu(row));
            project(pool, &block.down, up, rows, &mut buffers.added)?;
        }
        self.watch.charge(Component::Ffn);
        add(&mut buffers.x, &buffers.added);
        self.watch.charge(Component::Other);
        Ok(())
    }
}

/// The buffer with exactly `len` values; what they are is not said.
fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    buffer.resize(len, 0.0);
    buffer
}

fn normalize(pool: &Pool, config: &Config, weights: &NormWeights, x: &[f32], out: &mut Vec<f32>) {
    let width = config.width;
    each_row(pool, sized(out, x.len()), width, &|index, row| {
        let x = &x[index * width..(index + 1) * width];
        match config.norm {
            Norm::Rms => rms_norm(x, &weights.weight, config.epsilon, row),
            Norm::Layer => layer_norm(x, &weights.weight, &weights.bias, config.epsilon, row),
        }
    });
}

fn project(pool: &Pool, linear: &Linear, x: &[f32], rows: usize, out: &mut Vec<f32>) -> Result<()> {
    let out = sized(out, rows * linear.outputs());
    matmul(pool, linear.matrix(pool)?, x, rows, out);
    add_bias(pool, out, linear);
    Ok(())
}

fn add_bias(pool: &Pool, values: &mut [f32], linear: &Linear) {
    if let Some(bias) = &linear.bias {
        each_row(pool, values, bias.len(), &|_, row| add(row, bias));
    }
}

/// Writes keys and values of every row to its page; both are (rows, kv_heads * head_dim).
pub fn store(pool: &Pool, pieces: &[Piece<'_>], cache: &Pages, layer: usize, k: &[f32], v: &[f32]) {
    let places: Vec<(&[PageId], usize)> =
        pieces.iter().flat_map(|piece| (0..piece.ids.len()).map(|row| (piece.pages, piece.start + row))).collect();
    let width = cache.layout.kv_heads * cache.layout.head_dim;
    each(pool, places.len(), &|row| {
        let (pages, place) = places[row];
        let page = cache.address(pages[place / PAGE_TOKENS], layer);
        assert!(!page.is_null(), "a token's own page is never gone");
        let values = row * width..(row + 1) * width;
        // SAFETY: a whole page of this layer; the slot is inside it and this row's alone.
        unsafe { cache.layout.store(page, place % PAGE_TOKENS, &k[values.clone()], &v[values]) };
    });
}
