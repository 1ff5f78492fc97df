//! One model in memory and one request after the other: the whole surface of the engine.

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::clock::now_ns;
use crate::failure::{Failure, Result, guarded};
use crate::model::{Config, Model};
use crate::weights::{Reader, Source};

/// Rows of logits that are computed at once for `score`: bounds the memory beside the result.
const SCORED_ROWS: usize = 64;

/// How to load a model.
#[derive(Debug, Clone)]
pub struct Options {
    /// "cpu" or "cuda", the latter only in a build with that feature.
    pub device: String,
    /// Most tokens in the cache.
    pub context_tokens: usize,
    /// Why the context is smaller than what was asked for; empty where it is not.
    pub limit: String,
    /// Most prompt tokens that are computed at once: bounds the matrix of attention scores.
    pub prompt_chunk: usize,
    /// Tensors of the source that may stay unread.
    pub unread: Vec<String>,
}

/// What one session knows of itself; times are of the last request.
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
    options: Options,
    position: usize,
    next: Option<Tensor<1, Int>>, // (1,): stays on the device
    prefill_ns: u64,
    decode_ns: u64,
}

impl Session {
    /// Loads a model. On return the weights are resident and the device is idle.
    ///
    /// # Errors
    ///
    /// [`Failure::Unsupported`] for tensors that are not those of `config`, [`Failure::OutOfMemory`] for a cache that
    /// the system has no room for, and what `source` ends in.
    pub fn load(config: Config, source: &mut dyn Source, options: Options) -> Result<Self> {
        guarded("loading the model", || {
            let device = open_device(&options.device)?;
            reserve_cache(&config, options.context_tokens)?;
            let mut reader = Reader::new(source, &device);
            let model = Model::read(config, &mut reader, options.context_tokens, &device)?;
            reader.refuse_unread(&options.unread)?;
            let weights_bytes = reader.bytes;
            device.sync().map_err(|error| Failure::Engine(format!("the device failed: {error}")))?;
            Ok(Self { model, device, weights_bytes, options, position: 0, next: None, prefill_ns: 0, decode_ns: 0 })
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
            let mut last = None;
            for piece in ids.chunks(self.options.prompt_chunk) {
                last = Some(self.run(piece).narrow(0, piece.len() - 1, 1)); // (1, width)
            }
            let token = self.choose(last.expect("a prompt that was checked has a piece"))?;
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
            if self.position + n_tokens > self.options.context_tokens {
                let already = self.position;
                return Err(self.overflow(&format!("{n_tokens} more tokens after {already}"), already + n_tokens));
            }
            for _ in 0..n_tokens {
                let Some(token) = self.next.take() else {
                    let line = "expected a prompt before decode, the cache is empty; call cmp_prefill first";
                    return Err(Failure::Engine(line.to_owned()));
                };
                let hidden = self.model.hidden(token, self.position);
                self.position += 1;
                ids.push(self.choose(hidden)?);
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
            let mut scores = Vec::with_capacity(ids.len() * self.vocabulary());
            for piece in ids.chunks(self.options.prompt_chunk) {
                let hidden = self.run(piece);
                for start in (0..piece.len()).step_by(SCORED_ROWS) {
                    let rows = hidden.clone().narrow(0, start, SCORED_ROWS.min(piece.len() - start));
                    scores.extend(on_host::<f32>(self.model.logits(rows).try_into_data())?);
                }
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

    /// Runs a piece of a prompt; returns the final hidden states of all of it, (ids.len(), width).
    fn run(&mut self, ids: &[u32]) -> Tensor<2> {
        let values: Vec<i32> = ids.iter().map(|id| id.cast_signed()).collect();
        let hidden =
            self.model.hidden(Tensor::from_data(TensorData::new(values, [ids.len()]), &self.device), self.position);
        self.position += ids.len();
        hidden
    }

    /// The most likely next token after one hidden state, (1, width). Returns when the device is done.
    fn choose(&mut self, hidden: Tensor<2>) -> Result<u32> {
        let token: Tensor<1, Int> = self.model.logits(hidden).argmax(1).reshape([1]);
        let id = on_host::<i64>(token.clone().try_into_data())?[0];
        self.next = Some(token);
        Ok(id as u32)
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
        if needed > self.options.context_tokens {
            return Err(
                self.overflow(&format!("prompt has {} tokens and {output_tokens} are to come,", ids.len()), needed)
            );
        }
        Ok(())
    }

    fn overflow(&self, what: &str, needed: usize) -> Failure {
        let Options { context_tokens, limit, .. } = &self.options;
        let mend = if limit.is_empty() { format!("pass --context {needed}") } else { limit.clone() };
        Failure::ContextOverflow(format!("{what} do not fit, the context holds {context_tokens}; {mend}"))
    }
}

/// Values of a tensor that was read back, widened or narrowed to `T`.
fn on_host<T: burn::tensor::Element>(data: std::result::Result<TensorData, impl std::fmt::Display>) -> Result<Vec<T>> {
    let data = data.map_err(|error| Failure::Engine(format!("the device failed: {error}")))?;
    data.convert::<T>().try_into_vec().map_err(|error| Failure::Engine(format!("unreadable values: {error:?}")))
}

fn open_device(name: &str) -> Result<Device> {
    match name {
        "cpu" => Ok(Device::flex()),
        #[cfg(feature = "cuda")]
        "cuda" => Ok(Device::cuda(0)),
        #[cfg(not(feature = "cuda"))]
        "cuda" => {
            Err(Failure::Engine("this build of the extension has no CUDA; build it with the feature cuda".to_owned()))
        }
        other => Err(Failure::Engine(format!("expected device cpu or cuda, got '{other}'"))),
    }
}

/// Asks for the cache's memory once, where a refusal is an error: in Burn it would end the process.
fn reserve_cache(config: &Config, positions: usize) -> Result<()> {
    let bytes = [2, config.layers, config.kv_heads, config.head_dim, size_of::<f32>()]
        .into_iter()
        .try_fold(positions, usize::checked_mul);
    let granted = bytes.is_some_and(|bytes| Vec::<u8>::new().try_reserve_exact(bytes).is_ok());
    if granted {
        return Ok(());
    }
    Err(Failure::OutOfMemory(format!("no room for keys and values of {positions} tokens; pass a smaller --context")))
}
