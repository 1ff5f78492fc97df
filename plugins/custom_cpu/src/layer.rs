//! One layer by itself, for the operation "layer".

use std::sync::Arc;

use cpu_kernels::{KvLayout, KvType, Matrix, Pool};
use enginecmp_shim::Result;

use crate::config::{Activation, Config, Norm, RopeConfig};
use crate::graph::{Buffers, Layers, Outputs, Piece, store};
use crate::kv::{Pages, Sequence};
use crate::model::Block;
use crate::profile::Stopwatch;
use crate::rope::Rope;
use crate::weights::{Linear, NormWeights};

/// What a layer of llama's shape is made of.
pub struct Shape {
    pub rows: usize,
    /// Positions that the cache holds before the rows.
    pub past: usize,
    pub width: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub feed_forward: usize,
    pub rope_base: f64,
    pub epsilon: f32,
}

/// A layer with its input and a cache of its own.
pub struct Layer {
    pool: Arc<Pool>,
    config: Config,
    rope: Rope,
    block: Block,
    x: Vec<f32>,
    /// One for each row; which ones does not matter behind the embedding.
    ids: Vec<u32>,
    past: usize,
    cache: Pages,
    sequence: Sequence,
    buffers: Buffers,
    watch: Stopwatch,
}

/// Rotary embedding over whole heads, in halves.
pub fn plain_rope(base: f64, head_dim: usize) -> Rope {
    let config = RopeConfig {
        base,
        dimensions: head_dim,
        interleaved: false,
        position_scale: 1.0,
        magnitude: 1.0,
        factors: None,
    };
    Rope::new(&config, None)
}

impl Layer {
    /// Asks for one array after the other, by name: a matrix of (outputs, inputs), or values.
    pub fn new(
        shape: &Shape,
        kind: KvType,
        pool: Arc<Pool>,
        matrix: impl Fn(&str, usize, usize) -> Result<Matrix>,
        values: impl Fn(&str) -> Result<Vec<f32>>,
    ) -> Result<Self> {
        let Shape { rows, past, width, kv_heads, head_dim, feed_forward, .. } = *shape;
        let (q, kv) = (shape.heads * head_dim, kv_heads * head_dim);
        let linear =
            |name: &str, outputs: usize, inputs: usize| Ok(Linear::packed(matrix(name, outputs, inputs)?, outputs));
        let norm = |name: &str| Ok(NormWeights { weight: values(name)?, bias: Vec::new() });
        let block = Block {
            attn_norm: norm("attn_norm")?,
            qkv: [linear("attn_q", q, width)?, linear("attn_k", kv, width)?, linear("attn_v", kv, width)?],
            attn_output: linear("attn_output", width, q)?,
            ffn_norm: norm("ffn_norm")?,
            gate: Some(linear("ffn_gate", feed_forward, width)?),
            up: linear("ffn_up", feed_forward, width)?,
            down: linear("ffn_down", width, feed_forward)?,
        };
        let rope = plain_rope(shape.rope_base, head_dim);
        let count = rope.angle_count();
        let mut buffers = Buffers::default();
        buffers.angles.resize(rows * count, 0.0);
        for (row, angles) in buffers.angles.chunks_exact_mut(count).enumerate() {
            rope.angles(past + row, angles);
        }
        let mut cache = Pages::new(KvLayout { kind, kv_heads, head_dim }, 1);
        let mut sequence = Sequence::default();
        sequence.reserve(past + rows, &mut cache)?;
        let before = vec![0; past];
        let piece = Piece { ids: &before, start: 0, pages: &sequence.pages, outputs: Outputs::None };
        store(&pool, &[piece], &cache, 0, &values("keys")?, &values("values")?);
        let config = Config {
            layers: 1,
            width,
            heads: shape.heads,
            kv_heads,
            head_dim,
            norm: Norm::Rms,
            activation: Activation::SwiGlu,
            epsilon: shape.epsilon,
            sliding_window: 0,
            rope: None,
        };
        let (x, ids, watch) = (values("x")?, vec![0; rows], Stopwatch::default());
        Ok(Self { pool, config, rope, block, x, ids, past, cache, sequence, buffers, watch })
    }

    /// Runs the rows; their keys and values take the place of those of the last run.
    pub fn run(&mut self) -> Result<()> {
        self.buffers.x.clone_from(&self.x);
        let piece = Piece { ids: &self.ids, start: self.past, pages: &self.sequence.pages, outputs: Outputs::None };
        let mut layers = Layers {
            pool: &self.pool,
            config: &self.config,
            rope: Some(&self.rope),
            window: 0,
            watch: &mut self.watch,
            buffers: &mut self.buffers,
        };
        layers.run(&self.block, &[piece], &mut self.cache, 0)
    }

    /// Hidden states behind the layer, (rows, width).
    pub fn answer(&self) -> &[f32] {
        &self.buffers.x
    }
}
