//! One model in memory and one request after the other: the whole surface of the engine.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use candle_core::quantized::gguf_file::Content;
use candle_core::{D, Device, Tensor};

use crate::clock::now_ns;
use crate::config::Config;
use crate::failure::{Failure, Result, guarded};
use crate::model::Model;
use crate::weights::Reader;

/// Rows of logits that are computed at once for `score`: bounds the memory beside the result.
const SCORED_ROWS: usize = 64;

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

/// What one session knows of itself; seconds are of the last request.
#[derive(Debug, Clone, Copy)]
pub struct Metrics {
    pub weights_bytes: usize,
    pub kv_cache_bytes: usize,
    pub prefill_ns: u64,
    pub decode_ns: u64,
}

/// Token ids and when each could be used, nanoseconds of the monotonic clock.
pub type Stamped = (Vec<u32>, Vec<u64>);

#[derive(Debug)]
pub struct Session {
    model: Model,
    device: Device,
    weights_bytes: usize,
    context_tokens: usize,
    /// Why the context is smaller than what was asked for; empty where it is not.
    limit: String,
    prompt_chunk: usize,
    position: usize,
    next: Option<Tensor>, // (1,), u32: stays on the device
    prefill_ns: u64,
    decode_ns: u64,
}

impl Session {
    /// Loads a GGUF file. On return the weights are resident and the device is idle.
    ///
    /// # Errors
    ///
    /// [`Failure::Unsupported`] for a file that is not for this engine, [`Failure::OutOfMemory`] for a cache that the
    /// system has no room for.
    pub fn load(path: &Path, options: &Options) -> Result<Self> {
        guarded("loading the model", || Self::read(path, options))
    }

    fn read(path: &Path, options: &Options) -> Result<Self> {
        let device = open_device(&options.device)?;
        let unreadable = |error: &dyn std::fmt::Display| {
            let path = path.display();
            Failure::Unsupported(format!("expected a GGUF file that Candle can read at {path}, came: {error}"))
        };
        let mut file = BufReader::new(File::open(path).map_err(|error| unreadable(&error))?);
        let content = Content::read(&mut file).map_err(|error| unreadable(&Failure::from(error)))?;
        let mut context_tokens = options.context_tokens;
        let config = Config::read(&content, context_tokens)?;
        let mut limit = String::new();
        if 0 < config.sliding_window && config.sliding_window < context_tokens {
            context_tokens = config.sliding_window;
            limit =
                "attention beyond the model's sliding window is not implemented, so use a shorter prompt".to_owned();
        }
        reserve_cache(&config, context_tokens)?;
        let mut reader = Reader::new(&content, file, &device);
        let model = Model::read(config, &mut reader, context_tokens, &device)?;
        let weights_bytes = reader.bytes;
        device.synchronize()?;
        Ok(Self {
            model,
            device,
            weights_bytes,
            context_tokens,
            limit,
            prompt_chunk: options.prompt_chunk.max(1),
            position: 0,
            next: None,
            prefill_ns: 0,
            decode_ns: 0,
        })
    }

    /// Number of token ids.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.model.vocabulary
    }

    /// Forgets the last request. What its tokens left in the cache is not read again.
    pub fn reset(&mut self) {
        self.position = 0;
        self.next = None;
        self.prefill_ns = 0;
        self.decode_ns = 0;
    }

    /// Runs a prompt and returns its greedy continuation, with the device done.
    ///
    /// # Errors
    ///
    /// [`Failure::ContextOverflow`] where `ids` and `output_tokens - 1` more do not fit; [`Failure::Engine`] for an
    /// empty prompt, an id outside the vocabulary or a cache that is not empty.
    pub fn prefill(&mut self, ids: &[u32], output_tokens: usize) -> Result<u32> {
        guarded("running the prompt", || {
            let start = now_ns();
            self.check(ids, output_tokens)?;
            let hidden = self.run_prompt(ids)?;
            let last = hidden.narrow(0, hidden.dim(0)? - 1, 1)?; // (1, width)
            let token = self.choose(&last)?;
            self.prefill_ns = now_ns() - start;
            Ok(token)
        })
    }

    /// Generates `n_tokens` more, greedily, end of sequence ignored: ids, and when each was on the host.
    ///
    /// # Errors
    ///
    /// [`Failure::Engine`] without a prompt before it; [`Failure::ContextOverflow`] where they do not fit.
    pub fn decode(&mut self, n_tokens: usize) -> Result<Stamped> {
        guarded("generating tokens", || {
            let start = now_ns();
            let (mut ids, mut stamps) = (Vec::with_capacity(n_tokens), Vec::with_capacity(n_tokens));
            if self.position + n_tokens > self.context_tokens {
                let already = self.position;
                return Err(self.overflow(&format!("{n_tokens} more tokens after {already}"), already + n_tokens));
            }
            for _ in 0..n_tokens {
                let Some(token) = self.next.take() else {
                    let line = "expected a prompt before decode, the cache is empty; call cmp_prefill first";
                    return Err(Failure::Engine(line.to_owned()));
                };
                let hidden = self.model.hidden(&token, self.position)?;
                self.position += 1;
                ids.push(self.choose(&hidden)?);
                stamps.push(now_ns());
            }
            self.decode_ns += now_ns() - start;
            Ok((ids, stamps))
        })
    }

    /// Logits after every token of a prompt, row after row: `ids.len()` times the vocabulary. Leaves an empty cache.
    ///
    /// # Errors
    ///
    /// As [`Session::prefill`].
    pub fn score(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        guarded("scoring the prompt", || {
            self.check(ids, 1)?;
            let hidden = self.run_prompt(ids)?;
            let mut scores = Vec::with_capacity(ids.len() * self.vocabulary());
            for start in (0..ids.len()).step_by(SCORED_ROWS) {
                let rows = hidden.narrow(0, start, SCORED_ROWS.min(ids.len() - start))?;
                scores.extend(self.model.logits(&rows)?.flatten_all()?.to_vec1::<f32>()?);
            }
            self.reset();
            Ok(scores)
        })
    }

    /// Sizes and times; see [`Metrics`].
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        Metrics {
            weights_bytes: self.weights_bytes,
            kv_cache_bytes: self.position * self.model.kv_bytes_per_token(),
            prefill_ns: self.prefill_ns,
            decode_ns: self.decode_ns,
        }
    }

    /// Runs a prompt in pieces; returns the final hidden states of all of it, (ids.len(), width).
    fn run_prompt(&mut self, ids: &[u32]) -> Result<Tensor> {
        let mut pieces = Vec::new();
        for piece in ids.chunks(self.prompt_chunk) {
            pieces.push(self.model.hidden(&Tensor::new(piece, &self.device)?, self.position)?);
            self.position += piece.len();
        }
        Ok(Tensor::cat(&pieces, 0)?)
    }

    /// The most likely next token after one hidden state, (1, width). Returns when the device is done.
    fn choose(&mut self, hidden: &Tensor) -> Result<u32> {
        let token = self.model.logits(hidden)?.argmax(D::Minus1)?; // (1,)
        let id = token.to_vec1::<u32>()?[0];
        self.next = Some(token);
        Ok(id)
    }

    fn check(&self, ids: &[u32], output_tokens: usize) -> Result<()> {
        if self.position > 0 {
            let held = self.position;
            let line = format!("expected an empty cache, it holds {held} tokens; call cmp_reset first");
            return Err(Failure::Engine(line));
        }
        if ids.is_empty() {
            return Err(Failure::Engine("expected a prompt of at least one token, got none".to_owned()));
        }
        let vocabulary = self.vocabulary();
        if let Some(position) = ids.iter().position(|id| *id as usize >= vocabulary) {
            let id = ids[position];
            let line = format!("expected ids in [0, {vocabulary}), got {id} at position {position}");
            return Err(Failure::Engine(line));
        }
        let needed = ids.len() + output_tokens.max(1) - 1;
        if needed > self.context_tokens {
            return Err(
                self.overflow(&format!("prompt has {} tokens and {output_tokens} are to come,", ids.len()), needed)
            );
        }
        Ok(())
    }

    fn overflow(&self, what: &str, needed: usize) -> Failure {
        let mend = if self.limit.is_empty() { format!("pass --context {needed}") } else { self.limit.clone() };
        Failure::ContextOverflow(format!("{what} do not fit, the context holds {}; {mend}", self.context_tokens))
    }
}

fn open_device(name: &str) -> Result<Device> {
    match name {
        "cpu" => Ok(Device::Cpu),
        "cuda" if candle_core::utils::cuda_is_available() => Ok(Device::new_cuda(0)?),
        "cuda" => {
            Err(Failure::Engine("this build of the extension has no CUDA; build it with the feature cuda".to_owned()))
        }
        other => Err(Failure::Engine(format!("expected device cpu or cuda, got '{other}'"))),
    }
}

/// Asks for the cache's memory once, where a refusal is an error: in Candle it would end the process.
fn reserve_cache(config: &Config, positions: usize) -> Result<()> {
    let elements = [2, config.layers, config.kv_heads, config.head_dim, size_of::<f32>()]
        .into_iter()
        .try_fold(positions, usize::checked_mul);
    let granted = elements.is_some_and(|bytes| Vec::<u8>::new().try_reserve_exact(bytes).is_ok());
    if granted {
        return Ok(());
    }
    Err(Failure::OutOfMemory(format!("no room for keys and values of {positions} tokens; pass a smaller --context")))
}
