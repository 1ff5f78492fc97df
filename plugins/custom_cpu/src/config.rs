//! What a file's metadata says of the arithmetic, or a refusal: never a guess.

use enginecmp_shim::{Result, refuse};

use crate::file::GgufFile;
use crate::metadata::Keys;

pub const ARCHITECTURES: [&str; 4] = ["llama", "qwen2", "phi3", "gpt2"];

const ROPE_FREQS: &str = "rope_freqs.weight";
const ROPE_LONG: &str = "rope_factors_long.weight";
const ROPE_SHORT: &str = "rope_factors_short.weight";

/// Keys that are implemented, or that say nothing about the arithmetic.
const KNOWN_KEYS: [&str; 22] = [
    "attention.causal",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "tensor_data_layout",
    "vocab_size",
];

/// Rotary position embedding (Su et al. 2021, arXiv:2104.09864) as one file asks for it.
#[derive(Debug, Clone)]
pub struct RopeConfig {
    /// Theta of dimension 0.
    pub base: f64,
    /// How many of a head's dimensions turn; the rest pass.
    pub dimensions: usize,
    /// Pairs are (2i, 2i + 1), because converters permute the rows of q and k for `llama`; otherwise they are
    /// (i, i + dimensions / 2), the layout of GPT-NeoX.
    pub interleaved: bool,
    /// Positions are multiplied by this (linear interpolation, Chen et al. 2023, arXiv:2306.15595).
    pub position_scale: f64,
    /// Cosine and sine are multiplied by this (LongRoPE's attention factor).
    pub magnitude: f64,
    /// The tensor whose values divide the frequencies, shape (dimensions / 2,).
    pub factors: Option<&'static str>,
}

/// What every block normalizes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norm {
    /// Root mean square (Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4).
    Rms,
    /// Mean and variance, with a bias (Ba et al. 2016, arXiv:1607.06450).
    Layer,
}

/// What stands between the two matrices of a feed-forward network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// silu(gate) * up (Shazeer 2020, arXiv:2002.05202, eq. 6).
    SwiGlu,
    /// The tanh form, which GPT-2 was trained with (Hendrycks & Gimpel 2016, arXiv:1606.08415).
    Gelu,
}

/// Shape and constants of one model.
#[derive(Debug, Clone)]
pub struct Config {
    pub layers: usize,
    pub width: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub norm: Norm,
    pub activation: Activation,
    /// Added to the mean square, or to the variance, in every norm.
    pub epsilon: f32,
    /// Positions that a token may look back on, itself included; 0 means all of them.
    pub sliding_window: usize,
    /// None where positions are learned vectors, added to the embedding.
    pub rope: Option<RopeConfig>,
}

impl Config {
    /// Reads shape and constants.
    ///
    /// `context_tokens` is what the session shall hold: LongRoPE has one set of factors for contexts up to the
    /// original length and one beyond.
    pub fn read(file: &GgufFile, context_tokens: usize) -> Result<Self> {
        let keys = Keys::new(&file.metadata)?;
        if !ARCHITECTURES.contains(&keys.architecture) {
            let got: String = keys.architecture.chars().take(40).flat_map(char::escape_default).collect();
            let known = ARCHITECTURES.join(", ");
            return Err(refuse(&format!("an architecture among {known}"), &format!("'{got}'")));
        }
        keys.refuse_unknown(&KNOWN_KEYS)?;
        if !keys.flag("attention.causal", true)? {
            return Err(refuse("causal attention", "attention.causal = false"));
        }
        let gpt2 = keys.architecture == "gpt2";
        let width = keys.positive("embedding_length", None)?;
        let heads = keys.positive("attention.head_count", None)?;
        let kv_heads = keys.positive("attention.head_count_kv", Some(heads))?;
        if !heads.is_multiple_of(kv_heads) {
            return Err(refuse("heads to be a multiple of kv heads", &format!("{heads} and {kv_heads}")));
        }
        let head_dim = keys.positive("attention.key_length", Some((width / heads).max(1)))?;
        let value_length = keys.integer("attention.value_length", Some(head_dim))?;
        if value_length != head_dim {
            return Err(refuse(&format!("attention.value_length {head_dim}"), &value_length.to_string()));
        }
        // Rows of q, k and v together: a size that overflows is of no file.
        if kv_heads.checked_mul(2).and_then(|n| n.checked_add(heads)).and_then(|n| n.checked_mul(head_dim)).is_none() {
            return Err(refuse("heads that a file can hold", &format!("{heads} of {head_dim}")));
        }
        let epsilon = if gpt2 { "attention.layer_norm_epsilon" } else { "attention.layer_norm_rms_epsilon" };
        Ok(Self {
            layers: keys.positive("block_count", None)?,
            width,
            heads,
            kv_heads,
            head_dim,
            norm: if gpt2 { Norm::Layer } else { Norm::Rms },
            activation: if gpt2 { Activation::Gelu } else { Activation::SwiGlu },
            epsilon: keys.number(epsilon, None)? as f32,
            sliding_window: keys.integer("attention.sliding_window", Some(0))?,
            rope: if gpt2 { None } else { Some(read_rope(&keys, file, head_dim, context_tokens)?) },
        })
    }
}

fn read_rope(keys: &Keys<'_>, file: &GgufFile, head_dim: usize, context_tokens: usize) -> Result<RopeConfig> {
    let scaling = keys.text("rope.scaling.type", "linear")?;
    if !["none", "linear", "longrope"].contains(&scaling) {
        let got: String = scaling.chars().take(40).flat_map(char::escape_default).collect();
        return Err(refuse("rope.scaling.type none, linear or longrope", &format!("'{got}'")));
    }
    let factor = [keys.number("rope.scaling.factor", Some(0.0))?, keys.number("rope.scale_linear", Some(0.0))?]
        .into_iter()
        .find(|factor| *factor != 0.0)
        .unwrap_or(1.0);
    let original =
        keys.integer("rope.scaling.original_context_length", Some(keys.integer("context_length", Some(usize::MAX))?))?;
    let (long, short) = (file.tensors.contains_key(ROPE_LONG), file.tensors.contains_key(ROPE_SHORT));
    if long != short || (scaling == "longrope" && !long) {
        return Err(refuse(&format!("both tensors {ROPE_LONG} and {ROPE_SHORT}"), "not both"));
    }
    let dimensions = keys.integer("rope.dimension_count", Some(head_dim))?;
    if dimensions > head_dim || !dimensions.is_multiple_of(2) {
        return Err(refuse(&format!("an even rope.dimension_count up to {head_dim}"), &dimensions.to_string()));
    }
    let factors = if file.tensors.contains_key(ROPE_FREQS) {
        Some(ROPE_FREQS)
    } else if long {
        // One choice for the whole session: keys in the cache would otherwise have been turned by other angles.
        Some(if context_tokens > original { ROPE_LONG } else { ROPE_SHORT })
    } else {
        None
    };
    Ok(RopeConfig {
        base: keys.number("rope.freq_base", Some(10_000.0))?,
        dimensions,
        interleaved: keys.architecture == "llama",
        position_scale: if scaling == "linear" { 1.0 / factor } else { 1.0 },
        magnitude: keys.number("rope.scaling.attn_factor", Some(1.0))?,
        factors,
    })
}
