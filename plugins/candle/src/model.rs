//! A decoder-only transformer over Candle's operations: llama, qwen2 and phi3 in one code path.
//!
//! There is no batch dimension: one sequence at a time.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::ops::{rms_norm, silu, softmax_last_dim, swiglu};

use crate::config::Config;
use crate::failure::failed;
use crate::rope::Rope;
use crate::weights::{Linear, Reader};

#[derive(Debug)]
enum Qkv {
    Separate([Linear; 3]),
    Fused(Linear),
}

#[derive(Debug)]
enum GateUp {
    Separate(Linear, Linear),
    Fused(Linear),
}

/// One pre-norm layer and its keys and values, each (kv_heads, positions, head_dim).
#[derive(Debug)]
struct Block {
    attn_norm: Tensor,
    qkv: Qkv,
    attn_output: Linear,
    ffn_norm: Tensor,
    gate_up: GateUp,
    ffn_down: Linear,
    keys: Tensor,
    values: Tensor,
}

#[derive(Debug)]
pub struct Model {
    config: Config,
    device: Device,
    embedding: Linear,
    blocks: Vec<Block>,
    output_norm: Tensor,
    head: Linear,
    rope: Rope,
    pub vocabulary: usize,
}

impl Model {
    /// Reads every tensor and makes room for `positions` keys and values.
    pub fn read(
        config: Config,
        reader: &mut Reader<'_>,
        positions: usize,
        device: &Device,
    ) -> enginecmp_shim::Result<Self> {
        let width = config.width;
        let vocabulary = reader.row_count("token_embd.weight")?;
        let factors = match config.rope.factors {
            Some(name) => Some(reader.vector(name, config.rope.dimensions / 2)?.to_vec1::<f32>().map_err(failed)?),
            None => None,
        };
        let embedding = reader.linear("token_embd", vocabulary, width)?;
        // Without a matrix of its own the head is the embedding.
        let head =
            if reader.has("output.weight") { reader.linear("output", vocabulary, width)? } else { embedding.clone() };
        Ok(Self {
            blocks: (0..config.layers)
                .map(|layer| Block::read(&config, reader, &format!("blk.{layer}"), positions, device))
                .collect::<enginecmp_shim::Result<_>>()?,
            output_norm: reader.vector("output_norm.weight", width)?,
            rope: Rope::new(&config.rope, positions, factors.as_deref(), device).map_err(failed)?,
            device: device.clone(),
            config,
            embedding,
            head,
            vocabulary,
        })
    }

    /// Runs tokens at positions `past ..`, keeps their keys and values, and returns their final hidden states.
    ///
    /// `ids` is (tokens,), u32; the result (tokens, width), not yet normalized.
    pub fn hidden(&self, ids: &Tensor, past: usize) -> Result<Tensor> {
        let tokens = ids.dim(0)?;
        let angles = self.rope.angles(past, tokens)?;
        // One token sees everything before it, so only prompts need a mask.
        let mask = if tokens > 1 { Some(causal_mask(tokens, past, &self.device)?) } else { None };
        let mut x = self.embedding.rows(ids)?; // (tokens, width)
        for block in &self.blocks {
            x = block.forward(&x, &self.config, &self.rope, &angles, mask.as_ref(), past)?;
        }
        Ok(x)
    }

    /// Logits, (tokens, vocabulary), of final hidden states.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.head.forward(&rms_norm(hidden, &self.output_norm, self.config.epsilon)?)
    }

    /// Bytes of keys and values that one position takes, in all layers.
    pub fn kv_bytes_per_token(&self) -> usize {
        2 * self.config.layers * self.config.kv_heads * self.config.head_dim * DType::F32.size_in_bytes()
    }
}

impl Block {
    fn read(
        config: &Config,
        reader: &mut Reader<'_>,
        name: &str,
        positions: usize,
        device: &Device,
    ) -> enginecmp_shim::Result<Self> {
        let (width, inner) = (config.width, reader.row_count(&format!("{name}.ffn_up.weight"))?);
        let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let qkv = if reader.has(&format!("{name}.attn_qkv.weight")) {
            Qkv::Fused(reader.linear(&format!("{name}.attn_qkv"), q + 2 * kv, width)?)
        } else {
            Qkv::Separate([
                reader.linear(&format!("{name}.attn_q"), q, width)?,
                reader.linear(&format!("{name}.attn_k"), kv, width)?,
                reader.linear(&format!("{name}.attn_v"), kv, width)?,
            ])
        };
        let up = reader.linear(&format!("{name}.ffn_up"), inner, width)?;
        let (gate_up, inner) = if reader.has(&format!("{name}.ffn_gate.weight")) {
            (GateUp::Separate(reader.linear(&format!("{name}.ffn_gate"), inner, width)?, up), inner)
        } else {
            (GateUp::Fused(up), inner / 2)
        };
        let cache = (config.kv_heads, positions, config.head_dim);
        Ok(Self {
            attn_norm: reader.vector(&format!("{name}.attn_norm.weight"), width)?,
            qkv,
            attn_output: reader.linear(&format!("{name}.attn_output"), width, q)?,
            ffn_norm: reader.vector(&format!("{name}.ffn_norm.weight"), width)?,
            gate_up,
            ffn_down: reader.linear(&format!("{name}.ffn_down"), width, inner)?,
            keys: Tensor::zeros(cache, DType::F32, device).map_err(failed)?,
            values: Tensor::zeros(cache, DType::F32, device).map_err(failed)?,
        })
    }

    fn forward(
        &self,
        x: &Tensor,
        config: &Config,
        rope: &Rope,
        angles: &(Tensor, Tensor),
        mask: Option<&Tensor>,
        past: usize,
    ) -> Result<Tensor> {
        let normed = rms_norm(x, &self.attn_norm, config.epsilon)?;
        let x = (x + self.attention(&normed, config, rope, angles, mask, past)?)?;
        let normed = rms_norm(&x, &self.ffn_norm, config.epsilon)?;
        // SwiGLU (Shazeer 2020, arXiv:2002.05202, eq. 6).
        let inner = match &self.gate_up {
            GateUp::Separate(gate, up) => (silu(&gate.forward(&normed)?)? * up.forward(&normed)?)?,
            GateUp::Fused(both) => swiglu(&both.forward(&normed)?)?,
        };
        x + self.ffn_down.forward(&inner)?
    }

    /// Attends from x, (tokens, width), to itself and the `past` positions in the cache.
    fn attention(
        &self,
        x: &Tensor,
        config: &Config,
        rope: &Rope,
        angles: &(Tensor, Tensor),
        mask: Option<&Tensor>,
        past: usize,
    ) -> Result<Tensor> {
        let (tokens, heads, kv_heads, head_dim) = (x.dim(0)?, config.heads, config.kv_heads, config.head_dim);
        let (q, k, v) = match &self.qkv {
            Qkv::Separate([q, k, v]) => (q.forward(x)?, k.forward(x)?, v.forward(x)?),
            Qkv::Fused(all) => {
                let (all, q, kv) = (all.forward(x)?, heads * head_dim, kv_heads * head_dim);
                (all.narrow(1, 0, q)?, all.narrow(1, q, kv)?, all.narrow(1, q + kv, kv)?)
            }
        };
        // (heads, tokens, head_dim); for one token no bytes move.
        let split = |x: Tensor, heads: usize| -> Result<Tensor> {
            x.reshape((tokens, heads, head_dim))?.transpose(0, 1)?.contiguous()
        };
        let (q, k, v) = (split(q, heads)?, split(k, kv_heads)?, split(v, kv_heads)?);
        let (q, k) = (rope.apply(&q, angles)?, rope.apply(&k, angles)?);
        self.keys.slice_set(&k, 1, past)?;
        self.values.slice_set(&v, 1, past)?;
        let seen = past + tokens;
        let (k, v) = (self.keys.narrow(1, 0, seen)?, self.values.narrow(1, 0, seen)?); // (kv_heads, seen, head_dim)

        // Query heads that share keys are rows of one matrix: nothing is repeated.
        let group = heads / kv_heads;
        let q = (q * (1.0 / (head_dim as f64).sqrt()))?.reshape((kv_heads, group * tokens, head_dim))?;
        let scores = q.matmul(&k.t()?)?; // (kv_heads, group * tokens, seen)
        let scores = match mask {
            Some(mask) => {
                let scores = scores.reshape((heads, tokens, seen))?.broadcast_add(mask)?;
                scores.reshape((kv_heads, group * tokens, seen))?
            }
            None => scores,
        };
        let mixed = softmax_last_dim(&scores)?.matmul(&v)?; // (kv_heads, group * tokens, head_dim)
        let mixed = mixed.reshape((heads, tokens, head_dim))?.transpose(0, 1)?;
        self.attn_output.forward(&mixed.reshape((tokens, heads * head_dim))?)
    }
}

/// What is added to scores: 0 where a token may look, minus infinity after itself; (tokens, past + tokens).
fn causal_mask(tokens: usize, past: usize, device: &Device) -> Result<Tensor> {
    let row =
        |token: usize| (0..past + tokens).map(move |seen| if seen > past + token { f32::NEG_INFINITY } else { 0.0 });
    let mask: Vec<f32> = (0..tokens).flat_map(row).collect();
    Tensor::from_vec(mask, (tokens, past + tokens), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_hides_only_what_comes_later() {
        let mask: Vec<Vec<f32>> = causal_mask(2, 3, &Device::Cpu).unwrap().to_vec2().unwrap();
        assert_eq!(mask, [[0.0, 0.0, 0.0, 0.0, f32::NEG_INFINITY], [0.0; 5]]);
    }
}
