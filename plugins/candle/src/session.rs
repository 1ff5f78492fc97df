//! A GGUF file as a session: what Candle does at each step of a request.

use std::fs::File;
use std::io::BufReader;
use std::ops::Range;
use std::path::Path;

use candle_core::quantized::gguf_file::Content;
use candle_core::{D, Device, Tensor};
use enginecmp_shim::{Failure, Limits, Result, guarded, reserve_cache};

use crate::config::Config;
use crate::failure::failed;
use crate::model::Model;
use crate::weights::Reader;

/// How to load a model.
#[derive(Debug, Clone)]
pub struct Options {
    /// "cpu" or "cuda", the latter only in a build with that feature.
    pub device: String,
    /// Most tokens in the cache.
    pub context_tokens: usize,
    /// Most prompt tokens that are computed at once: bounds the matrix of attention scores.
    pub prompt_chunk: usize,
}

/// A model on its device.
#[derive(Debug)]
pub struct Loaded {
    model: Model,
    device: Device,
    weights_bytes: usize,
}

/// One model and one request after the other.
pub type Session = enginecmp_shim::Session<Loaded>;

/// Loads a GGUF file. On return the weights are resident and the device is idle.
///
/// # Errors
///
/// [`Failure::Unsupported`] for a file that is not for this engine, [`Failure::OutOfMemory`] for a cache that the
/// system has no room for.
pub fn load(path: &Path, options: &Options) -> Result<Session> {
    guarded("loading the model", || read(path, options))
}

fn read(path: &Path, options: &Options) -> Result<Session> {
    let device = open_device(&options.device)?;
    let unreadable = |error: &dyn std::fmt::Display| {
        let path = path.display();
        Failure::Unsupported(format!("expected a GGUF file that Candle can read at {path}, got: {error}"))
    };
    let mut file = BufReader::new(File::open(path).map_err(|error| unreadable(&error))?);
    let content = Content::read(&mut file).map_err(|error| unreadable(&failed(error)))?;
    let mut context_tokens = options.context_tokens;
    let config = Config::read(&content, context_tokens)?;
    let mut reason = String::new();
    if 0 < config.sliding_window && config.sliding_window < context_tokens {
        context_tokens = config.sliding_window;
        reason = "attention beyond the model's sliding window is not implemented, so use a shorter prompt".to_owned();
    }
    reserve_cache(config.layers, config.kv_heads, config.head_dim, context_tokens)?;
    let mut reader = Reader::new(&content, file, &device);
    let model = Model::read(config, &mut reader, context_tokens, &device)?;
    let weights_bytes = reader.bytes;
    device.synchronize().map_err(failed)?;
    let limits = Limits { context_tokens, reason, prompt_chunk: options.prompt_chunk.max(1) };
    Ok(Session::new(Loaded { model, device, weights_bytes }, limits))
}

impl Loaded {
    fn most_likely(&self, hidden: &Tensor) -> candle_core::Result<(Tensor, u32)> {
        let last = hidden.narrow(0, hidden.dim(0)? - 1, 1)?; // (1, width)
        let token = self.model.logits(&last)?.argmax(D::Minus1)?; // (1,)
        let id = token.to_vec1::<u32>()?[0];
        Ok((token, id))
    }
}

impl enginecmp_shim::Model for Loaded {
    type Hidden = Tensor; // (tokens, width)
    type Token = Tensor; // (1,), u32

    fn vocabulary(&self) -> usize {
        self.model.vocabulary
    }

    fn weights_bytes(&self) -> usize {
        self.weights_bytes
    }

    fn kv_bytes_per_token(&self) -> usize {
        self.model.kv_bytes_per_token()
    }

    fn run(&mut self, ids: &[u32], past: usize) -> Result<Tensor> {
        Tensor::new(ids, &self.device).and_then(|ids| self.model.hidden(&ids, past)).map_err(failed)
    }

    fn step(&mut self, token: Tensor, past: usize) -> Result<Tensor> {
        self.model.hidden(&token, past).map_err(failed)
    }

    fn choose(&self, hidden: Tensor) -> Result<(Tensor, u32)> {
        self.most_likely(&hidden).map_err(failed)
    }

    fn logits(&self, hidden: &Tensor, rows: Range<usize>) -> Result<Vec<f32>> {
        let rows = hidden.narrow(0, rows.start, rows.len());
        let logits = rows.and_then(|rows| self.model.logits(&rows)?.flatten_all()?.to_vec1::<f32>());
        logits.map_err(failed)
    }
}

fn open_device(name: &str) -> Result<Device> {
    match name {
        "cpu" => Ok(Device::Cpu),
        "cuda" if candle_core::utils::cuda_is_available() => Device::new_cuda(0).map_err(failed),
        "cuda" => {
            Err(Failure::Engine("this build of the extension has no CUDA; build it with the feature cuda".to_owned()))
        }
        other => Err(Failure::Engine(format!("expected device cpu or cuda, got '{other}'"))),
    }
}
