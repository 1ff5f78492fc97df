//! A decoder-only transformer over Burn's tensor operations: llama, qwen2 and phi3 in one code path.
//!
//! There is no batch dimension: one sequence at a time.

use burn::tensor::activation::{silu, softmax};
use burn::tensor::module::attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Device, Int, Tensor, TensorData};
use enginecmp_shim::Result;

use crate::rope::{Angles, Rope, RopeConfig};
use crate::weights::{Embedding, Linear, Reader};

/// Shape and constants of one model.
#[derive(Debug, Clone)]
pub struct Config {
    pub layers: usize,
    pub width: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Added to the mean square in every norm.
    pub epsilon: f64,
    pub rope: RopeConfig,
    /// Prompts go through Burn's own attention, not through one of its operations after the other.
    pub fused_attention: bool,
}

#[derive(Debug)]
enum Qkv {
    Separate(Box<[Linear; 3]>),
    Fused(Box<Linear>),
}

#[derive(Debug)]
enum GateUp {
    Separate(Box<[Linear; 2]>),
    Fused(Box<Linear>),
}

/// Keys or values of one layer, (kv_heads, positions, head_dim).
#[derive(Debug)]
struct Cache {
    shape: [usize; 3],
    // Burn writes in place only where nobody else holds the tensor, so it leaves while it is written to.
    tensor: Option<Tensor<3>>,
}

/// One pre-norm layer and its keys and values.
#[derive(Debug)]
struct Block {
    attn_norm: Tensor<1>,
    qkv: Qkv,
    attn_output: Linear,
    ffn_norm: Tensor<1>,
    gate_up: GateUp,
    ffn_down: Linear,
    keys: Cache,
    values: Cache,
}

#[derive(Debug)]
pub struct Model {
    config: Config,
    embedding: Embedding,
    blocks: Vec<Block>,
    output_norm: Tensor<1>,
    head: Linear,
    rope: Rope,
    pub vocabulary: usize,
}

impl Model {
    /// Reads every tensor and makes room for `positions` keys and values.
    pub fn read(config: Config, reader: &mut Reader<'_>, positions: usize, device: &Device) -> Result<Self> {
        let width = config.width;
        let vocabulary = reader.row_count("token_embd.weight")?;
        let embedding = reader.embedding("token_embd", vocabulary, width)?;
        // Without a matrix of its own the head is the embedding.
        let head =
            if reader.has("output.weight") { reader.linear("output", vocabulary, width)? } else { embedding.as_head() };
        Ok(Self {
            blocks: (0..config.layers)
                .map(|layer| Block::read(&config, reader, &format!("blk.{layer}"), positions, device))
                .collect::<Result<_>>()?,
            output_norm: reader.read("output_norm.weight", [width])?,
            rope: Rope::new(&config.rope, positions, device),
            config,
            embedding,
            head,
            vocabulary,
        })
    }

    /// Runs tokens at positions `past ..`, keeps their keys and values, and returns their final hidden states.
    ///
    /// `ids` is (tokens,); the result (tokens, width), not yet normalized.
    pub fn hidden(&mut self, ids: Tensor<1, Int>, past: usize) -> Tensor<2> {
        let [tokens] = ids.dims();
        let angles = self.rope.angles(past, tokens);
        // One token sees everything before it, so only prompts need a mask.
        let mask = (tokens > 1 && !self.config.fused_attention).then(|| causal_mask(tokens, past, &ids.device()));
        let mut x = self.embedding.forward(ids); // (tokens, width)
        for block in &mut self.blocks {
            x = block.forward(x, &self.config, &self.rope, &angles, mask.as_ref(), past);
        }
        x
    }

    /// Logits, (tokens, vocabulary), of final hidden states.
    pub fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        self.head.forward(rms_norm(hidden, &self.output_norm, self.config.epsilon))
    }

    /// Bytes of keys and values that one position takes, in all layers.
    pub fn kv_bytes_per_token(&self) -> usize {
        2 * self.config.layers * self.config.kv_heads * self.config.head_dim * size_of::<f32>()
    }
}

impl Cache {
    fn new(shape: [usize; 3], device: &Device) -> Self {
        Self { shape, tensor: Some(Tensor::zeros(shape, device)) }
    }

    /// Writes x, (kv_heads, tokens, head_dim), at positions `past ..` and returns everything up to there.
    fn extend(&mut self, x: Tensor<3>, past: usize) -> Tensor<3> {
        let [kv_heads, _, head_dim] = self.shape;
        let seen = past + x.dims()[1];
        // None after a panic; nothing of what it held is needed, because a reset follows.
        let tensor = self.tensor.take().unwrap_or_else(|| Tensor::zeros(self.shape, &x.device()));
        let tensor = tensor.slice_assign([0..kv_heads, past..seen, 0..head_dim], x);
        self.tensor = Some(tensor.clone());
        tensor.narrow(1, 0, seen)
    }
}

impl Block {
    fn read(config: &Config, reader: &mut Reader<'_>, name: &str, positions: usize, device: &Device) -> Result<Self> {
        let (width, inner) = (config.width, reader.row_count(&format!("{name}.ffn_up.weight"))?);
        let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let qkv = if reader.has(&format!("{name}.attn_qkv.weight")) {
            Qkv::Fused(Box::new(reader.linear(&format!("{name}.attn_qkv"), q + 2 * kv, width)?))
        } else {
            Qkv::Separate(Box::new([
                reader.linear(&format!("{name}.attn_q"), q, width)?,
                reader.linear(&format!("{name}.attn_k"), kv, width)?,
                reader.linear(&format!("{name}.attn_v"), kv, width)?,
            ]))
        };
        let up = reader.linear(&format!("{name}.ffn_up"), inner, width)?;
        let (gate_up, inner) = if reader.has(&format!("{name}.ffn_gate.weight")) {
            let gate = reader.linear(&format!("{name}.ffn_gate"), inner, width)?;
            (GateUp::Separate(Box::new([gate, up])), inner)
        } else {
            (GateUp::Fused(Box::new(up)), inner / 2)
        };
        let cache = [config.kv_heads, positions, config.head_dim];
        Ok(Self {
            attn_norm: reader.read(&format!("{name}.attn_norm.weight"), [width])?,
            qkv,
            attn_output: reader.linear(&format!("{name}.attn_output"), width, q)?,
            ffn_norm: reader.read(&format!("{name}.ffn_norm.weight"), [width])?,
            gate_up,
            ffn_down: reader.linear(&format!("{name}.ffn_down"), width, inner)?,
            keys: Cache::new(cache, device),
            values: Cache::new(cache, device),
        })
    }

    fn forward(
        &mut self,
        x: Tensor<2>,
        config: &Config,
        rope: &Rope,
        angles: &Angles,
        mask: Option<&Tensor<3>>,
        past: usize,
    ) -> Tensor<2> {
        let normed = rms_norm(x.clone(), &self.attn_norm, config.epsilon);
        let x = x + self.attention(normed, config, rope, angles, mask, past);
        let normed = rms_norm(x.clone(), &self.ffn_norm, config.epsilon);
        // SwiGLU (Shazeer 2020, arXiv:2002.05202, eq. 6).
        let (gate, up) = match &self.gate_up {
            GateUp::Separate(both) => {
                let [gate, up] = &**both;
                (gate.forward(normed.clone()), up.forward(normed))
            }
            GateUp::Fused(both) => {
                let both = both.forward(normed);
                let inner = both.dims()[1] / 2;
                (both.clone().narrow(1, 0, inner), both.narrow(1, inner, inner))
            }
        };
        x + self.ffn_down.forward(silu(gate) * up)
    }

    /// Attends from x, (tokens, width), to itself and the `past` positions in the cache.
    fn attention(
        &mut self,
        x: Tensor<2>,
        config: &Config,
        rope: &Rope,
        angles: &Angles,
        mask: Option<&Tensor<3>>,
        past: usize,
    ) -> Tensor<2> {
        let (tokens, heads, kv_heads, head_dim) = (x.dims()[0], config.heads, config.kv_heads, config.head_dim);
        let (q, k, v) = match &self.qkv {
            Qkv::Separate(all) => {
                let [q, k, v] = &**all;
                (q.forward(x.clone()), k.forward(x.clone()), v.forward(x))
            }
            Qkv::Fused(all) => {
                let (all, q, kv) = (all.forward(x), heads * head_dim, kv_heads * head_dim);
                (all.clone().narrow(1, 0, q), all.clone().narrow(1, q, kv), all.narrow(1, q + kv, kv))
            }
        };
        // (heads, tokens, head_dim)
        let split = |x: Tensor<2>, heads: usize| x.reshape([tokens, heads, head_dim]).swap_dims(0, 1);
        let (q, k, v) = (split(q, heads), split(k, kv_heads), split(v, kv_heads));
        let (q, k) = (rope.apply(q, angles), rope.apply(k, angles));
        let (k, v) = (self.keys.extend(k, past), self.values.extend(v, past)); // (kv_heads, seen, head_dim)
        let merge = |x: Tensor<3>| x.swap_dims(0, 1).reshape([tokens, heads * head_dim]);

        if tokens > 1 && config.fused_attention {
            let options = AttentionModuleOptions { is_causal: true, ..Default::default() };
            let mixed = attention(q.unsqueeze(), k.unsqueeze(), v.unsqueeze(), None, None, options);
            return self.attn_output.forward(merge(mixed.reshape([heads, tokens, head_dim])));
        }
        // Query heads that share keys are rows of one matrix: nothing is repeated.
        let (group, seen) = (heads / kv_heads, past + tokens);
        let q = (q * (1.0 / (head_dim as f64).sqrt())).reshape([kv_heads, group * tokens, head_dim]);
        let mut scores = q.matmul(k.transpose()); // (kv_heads, group * tokens, seen)
        if let Some(mask) = mask {
            let by_head = scores.reshape([heads, tokens, seen]) + mask.clone();
            scores = by_head.reshape([kv_heads, group * tokens, seen]);
        }
        let mixed = softmax(scores, 2).matmul(v); // (kv_heads, group * tokens, head_dim)
        self.attn_output.forward(merge(mixed.reshape([heads, tokens, head_dim])))
    }
}

/// Zhang & Sennrich 2019 (arXiv:1910.07467), eq. 4; x is (tokens, width).
fn rms_norm(x: Tensor<2>, weight: &Tensor<1>, epsilon: f64) -> Tensor<2> {
    let rms = (x.clone().square().mean_dim(1) + epsilon).sqrt(); // (tokens, 1)
    (x / rms) * weight.clone().unsqueeze()
}

/// What is added to scores: 0 where a token may look, minus infinity after itself; (1, tokens, past + tokens).
fn causal_mask(tokens: usize, past: usize, device: &Device) -> Tensor<3> {
    let row =
        |token: usize| (0..past + tokens).map(move |seen| if seen > past + token { f32::NEG_INFINITY } else { 0.0 });
    let mask: Vec<f32> = (0..tokens).flat_map(row).collect();
    Tensor::from_data(TensorData::new(mask, [1, tokens, past + tokens]), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_hides_only_what_comes_later() {
        let mask = causal_mask(2, 3, &Device::flex()).into_data().try_to_vec::<f32>().unwrap();
        assert_eq!(mask, [0.0, 0.0, 0.0, 0.0, f32::NEG_INFINITY, 0.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn a_cache_keeps_what_came_before_and_starts_over_after_a_panic_took_it() {
        let device = Device::flex();
        let mut cache = Cache::new([1, 4, 2], &device);
        let step = |value: f32| Tensor::<3>::full([1, 1, 2], value, &device);
        cache.extend(step(1.0), 0);
        let seen = cache.extend(step(2.0), 1).into_data().try_to_vec::<f32>().unwrap();
        assert_eq!(seen, [1.0, 1.0, 2.0, 2.0]);
        cache.tensor = None;
        assert_eq!(cache.extend(step(3.0), 0).into_data().try_to_vec::<f32>().unwrap(), [3.0, 3.0]);
    }
}
