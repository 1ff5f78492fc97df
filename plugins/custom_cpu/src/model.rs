//! Weights and constants of a decoder-only transformer: llama, qwen2, phi3 and gpt2 in one shape.

use std::path::Path;
use std::sync::Arc;

use cpu_kernels::Pool;
use enginecmp_shim::{Result, refuse};

use crate::config::{Activation, Config, Norm};
use crate::file::GgufFile;
use crate::rope::Rope;
use crate::weights::{Linear, Lookup, NormWeights, Reader};

/// One pre-norm layer. Matrices that a file keeps in one tensor are parts of it here.
pub struct Block {
    pub attn_norm: NormWeights,
    pub qkv: [Linear; 3],
    pub attn_output: Linear,
    pub ffn_norm: NormWeights,
    /// None where the activation is not gated.
    pub gate: Option<Linear>,
    pub up: Linear,
    pub down: Linear,
}

pub struct Model {
    pub config: Config,
    pub embedding: Lookup,
    /// Learned positions, one row each.
    pub positions: Option<Lookup>,
    pub blocks: Vec<Block>,
    pub output_norm: NormWeights,
    pub head: Linear,
    pub rope: Option<Rope>,
    pub vocabulary: usize,
    tied: bool,
}

impl Model {
    /// Reads a file's header, finds every tensor and checks its shape. Matrices are packed later.
    ///
    /// # Errors
    ///
    /// [`enginecmp_shim::Failure::Unsupported`] for a file that is not for this engine.
    pub fn open(path: &Path, context_tokens: usize) -> Result<Self> {
        let file = Arc::new(GgufFile::open(path)?);
        let config = Config::read(&file, context_tokens)?;
        file.expect();
        let reader = Reader { file };
        let width = config.width;
        let embedding = reader.lookup("token_embd.weight", width)?;
        let vocabulary = embedding.rows();
        if u32::try_from(vocabulary).is_err() {
            return Err(refuse("fewer than 2^32 token ids", &vocabulary.to_string()));
        }
        let rope = match &config.rope {
            Some(rope) => {
                let factors = rope.factors.map(|name| reader.vector(name, rope.dimensions / 2)).transpose()?;
                Some(Rope::new(rope, factors.as_deref()))
            }
            None => None,
        };
        let positions = if rope.is_none() { Some(reader.lookup("position_embd.weight", width)?) } else { None };
        // Without a matrix of its own the head is the embedding.
        let tied = !reader.has("output.weight");
        let head = reader.linear(if tied { "token_embd" } else { "output" }, vocabulary, width)?;
        let biased = config.norm == Norm::Layer;
        Ok(Self {
            // Not collected into room for as many layers as the file says it has: it may say anything.
            blocks: (0..config.layers)
                .map(|layer| Block::read(&config, &reader, &format!("blk.{layer}")))
                .collect::<Result<_>>()?,
            output_norm: reader.norm("output_norm", width, biased)?,
            config,
            embedding,
            positions,
            head,
            rope,
            vocabulary,
            tied,
        })
    }

    /// Packs every matrix.
    pub fn pack(&self, pool: &Pool) -> Result<()> {
        self.linears().try_for_each(|linear| linear.matrix(pool).map(drop))
    }

    /// Positions that learned vectors exist for; without them there is no limit.
    pub fn position_limit(&self) -> usize {
        self.positions.as_ref().map_or(usize::MAX, Lookup::rows)
    }

    /// Bytes of all weights: matrices as they are packed, vectors, and what is looked up in the mapped file.
    pub fn weights_bytes(&self) -> usize {
        let norms = self.blocks.iter().flat_map(|block| [&block.attn_norm, &block.ffn_norm]);
        let vectors = norms.chain([&self.output_norm]).map(|norm| norm.weight.len() + norm.bias.len()).sum::<usize>();
        let looked_up = if self.tied { 0 } else { self.embedding.bytes() };
        let positions = self.positions.as_ref().map_or(0, Lookup::bytes);
        self.linears().map(Linear::bytes).sum::<usize>() + vectors * size_of::<f32>() + looked_up + positions
    }

    fn linears(&self) -> impl Iterator<Item = &Linear> {
        let blocks = self.blocks.iter().flat_map(|block| {
            let rest = [&block.attn_output, &block.up, &block.down];
            block.qkv.iter().chain(rest).chain(&block.gate)
        });
        blocks.chain([&self.head])
    }
}

impl Block {
    fn read(config: &Config, reader: &Reader, name: &str) -> Result<Self> {
        let width = config.width;
        let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let qkv = if reader.has(&format!("{name}.attn_qkv.weight")) {
            reader.split(&format!("{name}.attn_qkv"), [q, kv, kv], width)?
        } else {
            [
                reader.linear(&format!("{name}.attn_q"), q, width)?,
                reader.linear(&format!("{name}.attn_k"), kv, width)?,
                reader.linear(&format!("{name}.attn_v"), kv, width)?,
            ]
        };
        let up_name = format!("{name}.ffn_up");
        let up_rows = reader.row_count(&format!("{up_name}.weight"))?;
        let gate_name = format!("{name}.ffn_gate");
        let (gate, up) = if config.activation == Activation::Gelu {
            (None, reader.linear(&up_name, up_rows, width)?)
        } else if reader.has(&format!("{gate_name}.weight")) {
            (Some(reader.linear(&gate_name, up_rows, width)?), reader.linear(&up_name, up_rows, width)?)
        } else if up_rows.is_multiple_of(2) {
            let [gate, up] = reader.split(&up_name, [up_rows / 2, up_rows / 2], width)?;
            (Some(gate), up)
        } else {
            return Err(refuse(
                &format!("gate and up of the same size in {up_name}.weight"),
                &format!("{up_rows} rows"),
            ));
        };
        let biased = config.norm == Norm::Layer;
        Ok(Self {
            attn_norm: reader.norm(&format!("{name}.attn_norm"), width, biased)?,
            qkv,
            attn_output: reader.linear(&format!("{name}.attn_output"), width, q)?,
            ffn_norm: reader.norm(&format!("{name}.ffn_norm"), width, biased)?,
            down: reader.linear(&format!("{name}.ffn_down"), width, up.outputs())?,
            gate,
            up,
        })
    }
}
