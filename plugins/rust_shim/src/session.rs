//! One model in memory and one request after the other: the same rules, limits and stamps for every engine.

use std::ops::Range;

use crate::clock::now_ns;
use crate::failure::{Failure, Result, guarded};

/// Rows of logits that are computed at once for `score`: bounds the memory beside the result.
const SCORED_ROWS: usize = 64;

/// A language model on a device, with room for the keys and values of one sequence.
pub trait Model: Send + Sync {
    /// Final hidden states of some tokens, on the device, not yet normalized.
    type Hidden;
    /// A token id that stays on the device.
    type Token: Send + Sync;

    /// Number of token ids.
    fn vocabulary(&self) -> usize;

    /// What the weights take in memory.
    fn weights_bytes(&self) -> usize;

    /// Bytes of keys and values that one position takes, in all layers.
    fn kv_bytes_per_token(&self) -> usize;

    /// Runs prompt tokens at positions `past ..` and keeps their keys and values, whatever the cache held there.
    ///
    /// # Errors
    ///
    /// Those of the library.
    fn run(&mut self, ids: &[u32], past: usize) -> Result<Self::Hidden>;

    /// As [`Model::run`], for one token that is on the device.
    ///
    /// # Errors
    ///
    /// Those of the library.
    fn step(&mut self, token: Self::Token, past: usize) -> Result<Self::Hidden>;

    /// The most likely token after the last row. Returns when the device is done.
    ///
    /// # Errors
    ///
    /// Those of the library.
    fn choose(&self, hidden: Self::Hidden) -> Result<(Self::Token, u32)>;

    /// Logits of some rows on the host, row after row: `rows.len()` times the vocabulary.
    ///
    /// # Errors
    ///
    /// Those of the library.
    fn logits(&self, hidden: &Self::Hidden, rows: Range<usize>) -> Result<Vec<f32>>;
}

/// What a session accepts.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Most tokens in the cache.
    pub context_tokens: usize,
    /// Why the context is smaller than what was asked for; empty where it is not.
    pub reason: String,
    /// Most prompt tokens that are computed at once, at least 1: bounds the matrix of attention scores.
    pub prompt_chunk: usize,
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

/// A session of any model: the whole surface of an engine.
pub trait Engine: Send + Sync {
    /// Number of token ids.
    fn vocabulary(&self) -> usize;

    /// Forgets the last request. What its tokens left in the cache is not read again.
    fn reset(&mut self);

    /// Runs a prompt and returns its greedy continuation, with the device done.
    ///
    /// # Errors
    ///
    /// [`Failure::ContextOverflow`] where `ids` and `output_tokens - 1` more do not fit; [`Failure::Engine`] for an
    /// empty prompt, an id outside the vocabulary or a cache that is not empty.
    fn prefill(&mut self, ids: &[u32], output_tokens: usize) -> Result<u32>;

    /// Generates `n_tokens` more, greedily, end of sequence ignored: ids, and when each was on the host.
    ///
    /// # Errors
    ///
    /// [`Failure::Engine`] without a prompt before it; [`Failure::ContextOverflow`] where they do not fit.
    fn decode(&mut self, n_tokens: usize) -> Result<Stamped>;

    /// Logits after every token of a prompt, row after row: `ids.len()` times the vocabulary. Leaves an empty cache.
    ///
    /// # Errors
    ///
    /// As [`Engine::prefill`].
    fn score(&mut self, ids: &[u32]) -> Result<Vec<f32>>;

    /// Sizes and times; see [`Metrics`].
    fn metrics(&self) -> Metrics;
}

/// One model and where its request is.
#[derive(Debug)]
pub struct Session<M: Model> {
    model: M,
    limits: Limits,
    position: usize,
    next: Option<M::Token>,
    prefill_ns: u64,
    decode_ns: u64,
}

impl<M: Model> Session<M> {
    /// A session of a model that has room for `limits.context_tokens`.
    pub fn new(model: M, limits: Limits) -> Self {
        Self { model, limits, position: 0, next: None, prefill_ns: 0, decode_ns: 0 }
    }

    fn run(&mut self, piece: &[u32]) -> Result<M::Hidden> {
        let hidden = self.model.run(piece, self.position)?;
        self.position += piece.len();
        Ok(hidden)
    }

    fn choose(&mut self, hidden: M::Hidden) -> Result<u32> {
        let (token, id) = self.model.choose(hidden)?;
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
        let vocabulary = self.model.vocabulary();
        if let Some(position) = ids.iter().position(|id| *id as usize >= vocabulary) {
            let id = ids[position];
            let line = format!("expected ids in [0, {vocabulary}), got {id} at position {position}");
            return Err(Failure::Engine(line));
        }
        let needed = ids.len() + output_tokens.max(1) - 1;
        if needed > self.limits.context_tokens {
            return Err(
                self.overflow(&format!("prompt has {} tokens and {output_tokens} are to come,", ids.len()), needed)
            );
        }
        Ok(())
    }

    fn overflow(&self, what: &str, needed: usize) -> Failure {
        let Limits { context_tokens, reason, .. } = &self.limits;
        let fix = if reason.is_empty() { format!("load it with context_tokens={needed}") } else { reason.clone() };
        Failure::ContextOverflow(format!("{what} do not fit, the context holds {context_tokens}; {fix}"))
    }
}

impl<M: Model> Engine for Session<M> {
    fn vocabulary(&self) -> usize {
        self.model.vocabulary()
    }

    fn reset(&mut self) {
        self.position = 0;
        self.next = None;
        self.prefill_ns = 0;
        self.decode_ns = 0;
    }

    fn prefill(&mut self, ids: &[u32], output_tokens: usize) -> Result<u32> {
        guarded("running the prompt", || {
            let start = now_ns();
            self.check(ids, output_tokens)?;
            let mut last = None;
            for piece in ids.chunks(self.limits.prompt_chunk) {
                last = Some(self.run(piece)?);
            }
            let token = self.choose(last.expect("a prompt that was checked has a piece"))?;
            self.prefill_ns = now_ns() - start;
            Ok(token)
        })
    }

    fn decode(&mut self, n_tokens: usize) -> Result<Stamped> {
        guarded("generating tokens", || {
            let start = now_ns();
            let (mut ids, mut stamps) = (Vec::with_capacity(n_tokens), Vec::with_capacity(n_tokens));
            if self.position + n_tokens > self.limits.context_tokens {
                let already = self.position;
                return Err(self.overflow(&format!("{n_tokens} more tokens after {already}"), already + n_tokens));
            }
            for _ in 0..n_tokens {
                let Some(token) = self.next.take() else {
                    let line = "expected a prompt before decode, the cache is empty; call cmp_prefill first";
                    return Err(Failure::Engine(line.to_owned()));
                };
                let hidden = self.model.step(token, self.position)?;
                self.position += 1;
                ids.push(self.choose(hidden)?);
                stamps.push(now_ns());
            }
            self.decode_ns += now_ns() - start;
            Ok((ids, stamps))
        })
    }

    fn score(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        guarded("scoring the prompt", || {
            self.check(ids, 1)?;
            let mut scores = Vec::with_capacity(ids.len() * self.model.vocabulary());
            for piece in ids.chunks(self.limits.prompt_chunk) {
                let hidden = self.run(piece)?;
                for start in (0..piece.len()).step_by(SCORED_ROWS) {
                    let rows = start..piece.len().min(start + SCORED_ROWS);
                    scores.extend(self.model.logits(&hidden, rows)?);
                }
            }
            self.reset();
            Ok(scores)
        })
    }

    fn metrics(&self) -> Metrics {
        Metrics {
            weights_bytes: self.model.weights_bytes(),
            kv_cache_bytes: self.position * self.model.kv_bytes_per_token(),
            prefill_ns: self.prefill_ns,
            decode_ns: self.decode_ns,
        }
    }
}

/// Asks once for the memory of a float32 cache, where a refusal is an error: inside a library it may end the process.
///
/// # Errors
///
/// [`Failure::OutOfMemory`].
pub fn reserve_cache(layers: usize, kv_heads: usize, head_dim: usize, positions: usize) -> Result<()> {
    let bytes = [2, layers, kv_heads, head_dim, size_of::<f32>()].into_iter().try_fold(positions, usize::checked_mul);
    let granted = bytes.is_some_and(|bytes| Vec::<u8>::new().try_reserve_exact(bytes).is_ok());
    if granted {
        return Ok(());
    }
    Err(Failure::OutOfMemory(format!(
        "no room for keys and values of {positions} tokens; choose a scenario with fewer tokens in its cells"
    )))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const VOCABULARY: usize = 100;

    /// A model that can be checked by hand: the next token is the sum of all tokens so far, modulo the vocabulary.
    #[derive(Default)]
    pub struct Sum {
        cache: Vec<u32>,
        /// Length of every piece that was run.
        pieces: Vec<usize>,
    }

    impl Sum {
        /// Sums up to and including every position of `ids`.
        fn sums(&self, count: usize) -> Vec<u32> {
            let past = self.cache.len() - count;
            (0..count).map(|row| self.cache[..=past + row].iter().sum::<u32>() % VOCABULARY as u32).collect()
        }
    }

    impl Model for Sum {
        type Hidden = Vec<u32>;
        type Token = u32;

        fn vocabulary(&self) -> usize {
            VOCABULARY
        }

        fn weights_bytes(&self) -> usize {
            12
        }

        fn kv_bytes_per_token(&self) -> usize {
            8
        }

        fn run(&mut self, ids: &[u32], past: usize) -> Result<Vec<u32>> {
            self.cache.truncate(past);
            assert_eq!(self.cache.len(), past, "the session passed over positions");
            assert!(!ids.contains(&99), "token 99");
            self.cache.extend(ids);
            self.pieces.push(ids.len());
            Ok(self.sums(ids.len()))
        }

        fn step(&mut self, token: u32, past: usize) -> Result<Vec<u32>> {
            self.run(&[token], past)
        }

        fn choose(&self, hidden: Vec<u32>) -> Result<(u32, u32)> {
            let token = *hidden.last().expect("a row");
            Ok((token, token))
        }

        fn logits(&self, hidden: &Vec<u32>, rows: Range<usize>) -> Result<Vec<f32>> {
            Ok(hidden[rows].iter().flat_map(|sum| (0..VOCABULARY).map(move |id| id as f32 - *sum as f32)).collect())
        }
    }

    pub fn session(context_tokens: usize, prompt_chunk: usize) -> Session<Sum> {
        Session::new(Sum::default(), Limits { context_tokens, reason: String::new(), prompt_chunk })
    }

    #[test]
    fn a_request_is_greedy_and_a_reset_forgets_it() {
        let mut session = session(16, 512);
        for _ in 0..2 {
            assert_eq!(session.prefill(&[1, 2], 4).unwrap(), 3);
            assert_eq!(session.decode(2).unwrap().0, [6, 12]);
            assert_eq!(session.decode(1).unwrap().0, [24]);
            session.reset();
        }
    }

    #[test]
    fn prompts_are_run_in_pieces_with_the_same_result() {
        let ids: Vec<u32> = (1..=7).collect();
        let mut pieces = session(16, 3);
        assert_eq!(pieces.prefill(&ids, 1).unwrap(), 28);
        assert_eq!(pieces.model.pieces, [3, 3, 1]);
        pieces.reset();
        assert_eq!(pieces.score(&ids).unwrap(), session(16, 512).score(&ids).unwrap());
    }

    #[test]
    fn scores_are_rows_of_every_position_and_leave_an_empty_cache() {
        let ids = vec![1; 2 * SCORED_ROWS + 1];
        let mut session = session(256, 512);
        let scores = session.score(&ids).unwrap();
        assert_eq!(scores.len(), ids.len() * VOCABULARY);
        for (row, scores) in scores.chunks_exact(VOCABULARY).enumerate() {
            assert_eq!(scores[0], -(((row + 1) % VOCABULARY) as f32));
        }
        assert_eq!(session.metrics().kv_cache_bytes, 0);
        session.prefill(&[1], 1).unwrap();
    }

    #[test]
    fn metrics_are_of_the_last_request() {
        let mut session = session(16, 512);
        let before = now_ns();
        session.prefill(&[1, 2], 3).unwrap();
        let (_, stamps) = session.decode(2).unwrap();
        let wall = now_ns() - before;
        assert!(before <= stamps[0] && stamps[0] <= stamps[1]);
        let metrics = session.metrics();
        assert_eq!((metrics.weights_bytes, metrics.kv_cache_bytes), (12, 32));
        assert!(0 < metrics.prefill_ns && 0 < metrics.decode_ns && metrics.prefill_ns + metrics.decode_ns <= wall);
        session.reset();
        let metrics = session.metrics();
        assert_eq!((metrics.kv_cache_bytes, metrics.prefill_ns, metrics.decode_ns), (0, 0, 0));
    }

    #[test]
    fn a_full_context_is_told_with_what_mends_it() {
        let mut session = session(4, 512);
        session.prefill(&[1, 2], 3).unwrap();
        session.decode(2).unwrap();
        let line = session.decode(1).unwrap_err().to_string();
        assert_eq!(line, "1 more tokens after 4 do not fit, the context holds 4; load it with context_tokens=5");
        session.reset();
        let failed = session.prefill(&[1, 2], 4).unwrap_err();
        assert!(matches!(failed, Failure::ContextOverflow(_)));
        let line =
            "prompt has 2 tokens and 4 are to come, do not fit, the context holds 4; load it with context_tokens=5";
        assert_eq!(failed.to_string(), line);
        session.limits.reason = "use a shorter prompt".to_owned();
        assert!(session.score(&[1; 5]).unwrap_err().to_string().ends_with("holds 4; use a shorter prompt"));
    }

    #[test]
    fn wrong_use_is_refused_before_the_model_runs() {
        let mut session = session(4, 512);
        let refused = |failed: Failure, part: &str| {
            assert!(matches!(&failed, Failure::Engine(line) if line.contains(part)), "{failed}");
        };
        refused(session.decode(1).unwrap_err(), "expected a prompt before decode");
        refused(session.prefill(&[], 1).unwrap_err(), "at least one token");
        refused(session.prefill(&[5, 100], 1).unwrap_err(), "ids in [0, 100), got 100 at position 1");
        assert!(session.model.pieces.is_empty());
        session.prefill(&[5], 1).unwrap();
        refused(session.score(&[5]).unwrap_err(), "it holds 1 tokens; call cmp_reset first");
    }

    #[test]
    fn a_session_works_again_after_a_panic_of_its_model() {
        let mut session = session(16, 2);
        let line = session.prefill(&[1, 2, 99], 1).unwrap_err().to_string();
        assert_eq!(line, "panicked while running the prompt: token 99");
        session.reset();
        assert_eq!(session.prefill(&[1, 2], 1).unwrap(), 3);
    }

    #[test]
    fn a_cache_that_no_memory_holds_is_refused() {
        reserve_cache(30, 3, 64, 100).unwrap();
        for positions in [1 << 44, usize::MAX] {
            let failed = reserve_cache(30, 3, 64, positions).unwrap_err();
            assert!(
                matches!(&failed, Failure::OutOfMemory(line) if line.contains("choose a scenario with fewer tokens in its cells"))
            );
        }
    }
}
