//! A GGUF file as a session: requests one after the other, or many at once.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cpu_kernels::{KvLayout, KvType, PAGE_TOKENS, Pool};
use enginecmp_shim::{Engine, Failure, Metrics, Result, Stamped, guarded, now_ns, refuse};

use crate::batch::{Batch, Decoding, Plan};
use crate::graph::{Graph, Outputs, Piece};
use crate::kv::{Pages, Sequence};
use crate::model::Model;
use crate::prefix::PrefixCache;
use crate::profile::COMPONENTS;
use crate::speculate::{DraftModel, Drafter, LEAST_CONTEXT};

/// How to load a model.
#[derive(Debug, Clone)]
pub struct Options {
    pub threads: usize,
    /// Most tokens of one sequence.
    pub context_tokens: usize,
    pub max_sequences: usize,
    /// Most prompt tokens that are computed at once.
    pub prompt_chunk: usize,
    pub kv: KvType,
    /// Positions that a token may look back on, beside what the model says; 0 leaves it to the model.
    pub sliding_window: usize,
    pub context_shift: bool,
    pub prefix_cache: bool,
    pub draft: Option<PathBuf>,
    /// Tokens that a prompt lookup compares; 0 for none.
    pub lookup: usize,
    pub draft_tokens: usize,
    /// Pack matrices while loading, or each when it is first multiplied by.
    pub packs_at_load: bool,
}

impl Default for Options {
    /// What the plugin's options are where nobody says otherwise.
    fn default() -> Self {
        Self {
            threads: 1,
            context_tokens: 2048,
            max_sequences: 1,
            prompt_chunk: 512,
            kv: KvType::F16,
            sliding_window: 0,
            context_shift: false,
            prefix_cache: false,
            draft: None,
            lookup: 0,
            draft_tokens: 4,
            packs_at_load: true,
        }
    }
}

/// A model, its cache and the requests in flight.
pub struct Session {
    batch: Batch,
    plan: Plan,
    /// Why the context is smaller than what was asked for; empty where it is not.
    limit: &'static str,
    /// Nanoseconds of each, told once.
    load_phases: Option<[(&'static str, u64); 3]>,
    is_prefilled: bool,
    /// Of the next request that comes through `prefill`.
    decoding: Decoding,
    prefill_ns: u64,
    decode_ns: u64,
}

/// Loads a GGUF file. On return its weights are in memory and no thread is at work.
///
/// # Errors
///
/// [`Failure::Unsupported`] for a file that is not for this engine, [`Failure::OutOfMemory`] where it does not fit.
pub fn load(path: &Path, options: &Options) -> Result<Session> {
    guarded("loading the model", || {
        let began = now_ns();
        let model = Arc::new(Model::open(path, options.context_tokens)?);
        let parsed = now_ns();
        let pool = Arc::new(Pool::new(options.threads));
        if options.packs_at_load {
            model.pack(&pool)?;
        }
        let mapped = now_ns();
        let mut context_tokens = options.context_tokens;
        let mut limit = "";
        if model.position_limit() < context_tokens {
            context_tokens = model.position_limit();
            limit = "the model has no positions beyond, so use a shorter prompt";
        }
        if options.context_shift && model.rope.is_none() {
            return Err(Failure::Engine(
                "context_shift needs rotary positions, this model has learned ones; leave it out".to_owned(),
            ));
        }
        if options.context_shift && context_tokens < PAGE_TOKENS {
            let line = format!("context_shift needs a context of {PAGE_TOKENS} tokens, got {context_tokens}");
            return Err(Failure::Engine(format!("{line}; load it with context_tokens={PAGE_TOKENS}")));
        }
        let window = match (model.config.sliding_window, options.sliding_window) {
            (0, wanted) => wanted,
            (own, 0) => own,
            (own, wanted) => own.min(wanted),
        };
        let plan = Plan {
            context_tokens,
            max_sequences: options.max_sequences,
            prompt_chunk: options.prompt_chunk,
            window,
            context_shift: options.context_shift,
            draft_tokens: options.draft_tokens,
        };
        let drafter = open_drafter(options, &plan, &model, &pool)?;
        let most_pages = plan.max_sequences.saturating_mul(plan.context_tokens.div_ceil(PAGE_TOKENS));
        let prefixes = options.prefix_cache.then(|| PrefixCache::new(most_pages));
        let pages = pages_of(&model, options.kv);
        let batch = Batch::new(Graph::new(model, pool, window), pages, plan, drafter, prefixes);
        let phases = [
            ("load_parse_seconds", parsed - began),
            ("load_map_seconds", mapped - parsed),
            ("load_init_seconds", now_ns() - mapped),
        ];
        Ok(Session {
            batch,
            plan,
            limit,
            load_phases: Some(phases),
            is_prefilled: false,
            decoding: Decoding::default(),
            prefill_ns: 0,
            decode_ns: 0,
        })
    })
}

fn open_drafter(options: &Options, plan: &Plan, model: &Model, pool: &Arc<Pool>) -> Result<Option<Drafter>> {
    if options.lookup > 0 {
        return Ok(Some(Drafter::Lookup(options.lookup)));
    }
    let Some(path) = &options.draft else { return Ok(None) };
    // A page more than the model's own: so the last guesses fit too.
    let context_tokens = plan.context_tokens.saturating_add(LEAST_CONTEXT);
    let draft = Model::open(path, context_tokens)?;
    if draft.vocabulary != model.vocabulary {
        let expected = format!("a draft model of {} token ids", model.vocabulary);
        return Err(refuse(&expected, &draft.vocabulary.to_string()));
    }
    if options.packs_at_load {
        draft.pack(pool)?;
    }
    let context_tokens = context_tokens.min(draft.position_limit());
    let (pages, window) = (pages_of(&draft, options.kv), draft.config.sliding_window);
    let graph = Graph::new(Arc::new(draft), pool.clone(), window);
    Ok(Some(Drafter::Model(Box::new(DraftModel::new(graph, pages, context_tokens, plan.prompt_chunk)))))
}

fn pages_of(model: &Model, kind: KvType) -> Pages {
    let config = &model.config;
    Pages::new(KvLayout { kind, kv_heads: config.kv_heads, head_dim: config.head_dim }, config.layers)
}

impl Session {
    /// Queues a request; false where as many as the session holds are in flight.
    ///
    /// # Errors
    ///
    /// As [`Engine::prefill`].
    pub fn submit(&mut self, id: String, ids: &[u32], output_tokens: usize, decoding: Decoding) -> Result<bool> {
        self.check(ids, output_tokens)?;
        self.check_decoding(&decoding)?;
        if !self.batch.has_room() {
            return Ok(false);
        }
        self.batch.submit(id, ids, output_tokens.max(1), false, decoding);
        Ok(true)
    }

    /// Chooses the next request's ids in this way, until it is over.
    ///
    /// # Errors
    ///
    /// [`Failure::Engine`] where somebody guesses ahead: guesses are checked against the most likely ids.
    pub fn decode_by(&mut self, decoding: Decoding) -> Result<()> {
        self.check_decoding(&decoding)?;
        self.decoding = decoding;
        Ok(())
    }

    fn check_decoding(&self, decoding: &Decoding) -> Result<()> {
        if self.batch.speculates() && (decoding.sampler.is_some() || !decoding.end_ids.is_empty()) {
            let line = "expected greedy decoding beside draft or lookup, got another; leave one of them out";
            return Err(Failure::Engine(line.to_owned()));
        }
        Ok(())
    }

    /// Advances all requests by one step; see [`Batch::step`].
    ///
    /// # Errors
    ///
    /// [`Failure::OutOfMemory`]; then everything in flight is lost.
    pub fn step(&mut self) -> Result<Vec<(String, u32)>> {
        guarded("advancing requests", || self.batch.step())
    }

    /// Seconds per component of a prompt and `n_tokens` steps after its first token, by the names in [`COMPONENTS`].
    ///
    /// # Errors
    ///
    /// As [`Engine::prefill`] and [`Engine::decode`].
    pub fn profile(&mut self, ids: &[u32], n_tokens: usize) -> Result<[(&'static str, f64); COMPONENTS.len()]> {
        self.reset();
        self.batch.graph.watch.start();
        let done = self.prefill(ids, n_tokens + 1).and_then(|_| self.decode(n_tokens));
        self.batch.graph.watch.stop();
        self.reset();
        done?;
        let mut at = 0;
        Ok(self.batch.graph.watch.nanoseconds.map(|spent_ns| {
            at += 1;
            (COMPONENTS[at - 1], spent_ns as f64 / 1e9)
        }))
    }

    /// Logits after the last token of a prompt. Leaves an empty cache.
    ///
    /// # Errors
    ///
    /// As [`Engine::prefill`].
    pub fn last_logits(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        self.all_logits(ids, Outputs::Last)
    }

    /// How the cache stores numbers.
    #[cfg(feature = "python")]
    pub fn kv_type(&self) -> KvType {
        self.batch.pages.layout.kind
    }

    pub fn pool(&self) -> Arc<Pool> {
        self.batch.graph.pool.clone()
    }

    /// Names and values of what only this engine knows; see the README. Those of the load come once, after it.
    pub fn own_metrics(&mut self) -> Vec<(&'static str, f64)> {
        let phases = self.load_phases.take().into_iter().flatten();
        let mut found: Vec<_> = phases.map(|(name, nanoseconds)| (name, nanoseconds as f64 / 1e9)).collect();
        let speculation = self.batch.speculation;
        if self.batch.speculates() && speculation.steps > 0 {
            found.push(("tokens_per_step", speculation.tokens as f64 / speculation.steps as f64));
        }
        if let Some(tokens) = self.batch.prefix_tokens() {
            found.push(("prefix_cache_hit_tokens", tokens as f64));
        }
        if speculation.guessed > 0 {
            found.push(("draft_acceptance_rate", speculation.accepted as f64 / speculation.guessed as f64));
        }
        found
    }

    fn check(&self, ids: &[u32], output_tokens: usize) -> Result<()> {
        if ids.is_empty() {
            return Err(Failure::Engine("expected a prompt of at least one token, got none".to_owned()));
        }
        let vocabulary = self.vocabulary();
        if let Some(position) = ids.iter().position(|id| *id as usize >= vocabulary) {
            let id = ids[position];
            let line = format!("expected ids in [0, {vocabulary}), got {id} at position {position}");
            return Err(Failure::Engine(line));
        }
        let output_tokens = if self.plan.context_shift { 1 } else { output_tokens };
        let needed = ids.len().saturating_add(output_tokens.max(1) - 1);
        if needed > self.plan.context_tokens {
            let what = format!("prompt has {} tokens and {output_tokens} are to come,", ids.len());
            return Err(self.overflow(&what, needed));
        }
        Ok(())
    }

    fn overflow(&self, what: &str, needed: usize) -> Failure {
        let context_tokens = self.plan.context_tokens;
        let fix =
            if self.limit.is_empty() { format!("load it with context_tokens={needed}") } else { self.limit.to_owned() };
        Failure::ContextOverflow(format!("{what} do not fit, the context holds {context_tokens}; {fix}"))
    }

    fn check_empty(&self) -> Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let held = self.batch.cached_tokens();
        Err(Failure::Engine(format!("expected an empty cache, it holds {held} tokens; call cmp_reset first")))
    }

    /// Logits of the rows that `outputs` says of a prompt, in pieces; nothing is kept of it.
    fn all_logits(&mut self, ids: &[u32], outputs: Outputs) -> Result<Vec<f32>> {
        self.check_empty()?;
        self.check(ids, 1)?;
        let Batch { graph, pages, .. } = &mut self.batch;
        let mut sequence = Sequence::default();
        let mut kept = Vec::new();
        let mut run = || -> Result<()> {
            let pieces = ids.chunks(self.plan.prompt_chunk);
            let last = pieces.len() - 1;
            for (index, ids) in pieces.enumerate() {
                let start = sequence.len;
                sequence.reserve(start + ids.len(), pages)?;
                let outputs = if outputs == Outputs::All || index == last { outputs } else { Outputs::None };
                let rows = graph.run(&[Piece { ids, start, pages: &sequence.pages, outputs }], pages)?;
                sequence.len += ids.len();
                graph.all_logits(rows, |logits| kept.extend_from_slice(logits))?;
            }
            Ok(())
        };
        let done = run();
        sequence.truncate(0, pages);
        done.map(|()| kept)
    }
}

impl Engine for Session {
    fn vocabulary(&self) -> usize {
        self.batch.graph.model.vocabulary
    }

    fn reset(&mut self) {
        self.batch.clear();
        self.is_prefilled = false;
        self.decoding = Decoding::default();
        self.prefill_ns = 0;
        self.decode_ns = 0;
    }

    fn prefill(&mut self, ids: &[u32], output_tokens: usize) -> Result<u32> {
        guarded("running the prompt", || {
            let start = now_ns();
            self.check_empty()?;
            self.check(ids, output_tokens)?;
            let decoding = std::mem::take(&mut self.decoding);
            self.batch.submit(String::new(), ids, output_tokens.max(1), true, decoding);
            let first = self.batch.step()?[0].1;
            self.is_prefilled = true;
            self.prefill_ns = now_ns() - start;
            Ok(first)
        })
    }

    fn decode(&mut self, n_tokens: usize) -> Result<Stamped> {
        guarded("generating tokens", || {
            let start = now_ns();
            if !self.is_prefilled {
                let line = "expected a prompt before decode, the cache is empty; call cmp_prefill first";
                return Err(Failure::Engine(line.to_owned()));
            }
            if n_tokens > self.batch.room() {
                let already = self.batch.cached_tokens();
                return Err(self.overflow(&format!("{n_tokens} more tokens after {already}"), already + n_tokens));
            }
            let (mut ids, mut stamps) = (Vec::new(), Vec::new());
            for _ in 0..n_tokens {
                ids.push(self.batch.step()?[0].1);
                stamps.push(now_ns());
            }
            self.decode_ns += now_ns() - start;
            Ok((ids, stamps))
        })
    }

    fn score(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        guarded("scoring the prompt", || self.all_logits(ids, Outputs::All))
    }

    fn metrics(&self) -> Metrics {
        Metrics {
            weights_bytes: self.batch.graph.model.weights_bytes() + self.batch.draft_bytes(),
            kv_cache_bytes: self.batch.cached_tokens() * self.batch.pages.bytes_per_token(),
            prefill_ns: self.prefill_ns,
            decode_ns: self.decode_ns,
        }
    }
}
