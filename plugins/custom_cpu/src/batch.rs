//! Continuous batching: which tokens of which sequences the next pass computes.
//!
//! Every pass carries the next token of all that generate, with the guesses that are to be checked, and as much of
//! waiting prompts as it has room for. A request that is alone is a batch of one.

use std::collections::VecDeque;

use cpu_kernels::{PAGE_TOKENS, argmax};
use enginecmp_shim::Result;

use crate::graph::{Graph, Outputs, Piece};
use crate::kv::{Pages, Sequence};
use crate::prefix::{NodeId, PrefixCache};
use crate::sample::Sampler;
use crate::shift::shift;
use crate::speculate::{Drafter, Wish};

/// How passes are made.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Most positions of a sequence.
    pub context_tokens: usize,
    pub max_sequences: usize,
    /// Most rows of a pass that carries prompts alone; beside sequences that generate, half as many.
    pub prompt_chunk: usize,
    /// As [`Graph`]: what lies before it is given back.
    pub window: usize,
    pub context_shift: bool,
    /// Most guesses checked in one pass.
    pub draft_tokens: usize,
}

/// What speculation brought, since the last reset.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Speculation {
    pub guessed: usize,
    pub accepted: usize,
    /// Times that a sequence's next token was computed.
    pub steps: usize,
    /// Tokens that came of it.
    pub tokens: usize,
}

/// How a request's ids are chosen, and what ends it: the most likely ones, and their number, where it says nothing.
#[derive(Debug, Default, Clone)]
pub struct Decoding {
    pub sampler: Option<Sampler>,
    /// With the first of these it is over.
    pub end_ids: Vec<u32>,
}

struct Running {
    id: String,
    decoding: Decoding,
    key: u64,
    sequence: Sequence,
    /// The prompt and all that came after.
    tokens: Vec<u32>,
    prompt_len: usize,
    /// How many of `tokens` are in the cache, or were before a shift.
    computed: usize,
    /// Tokens still to compute.
    left: usize,
    /// It waits for more to be asked of it when they are there.
    stays: bool,
    guesses: Vec<u32>,
    /// Tokens that are there and have not been handed out.
    held: VecDeque<u32>,
    /// The last of its pages that the prefix cache knows, and whether it can know more.
    prefix: Option<NodeId>,
    is_kept: bool,
}

impl Running {
    fn generates(&self) -> bool {
        self.computed >= self.prompt_len
    }
}

pub struct Batch {
    pub graph: Graph,
    pub pages: Pages,
    plan: Plan,
    drafter: Option<Drafter>,
    prefixes: Option<PrefixCache>,
    running: Vec<Running>,
    submitted: u64,
    /// Prompt tokens that the prefix cache had, since the last reset.
    prefix_tokens: usize,
    pub speculation: Speculation,
}

impl Batch {
    pub fn new(
        graph: Graph,
        pages: Pages,
        plan: Plan,
        drafter: Option<Drafter>,
        prefixes: Option<PrefixCache>,
    ) -> Self {
        Self {
            graph,
            pages,
            plan,
            drafter,
            prefixes,
            running: Vec::new(),
            submitted: 0,
            prefix_tokens: 0,
            speculation: Speculation::default(),
        }
    }

    /// Positions in the cache, of all sequences.
    pub fn cached_tokens(&self) -> usize {
        self.running.iter().map(|running| running.sequence.len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    pub fn has_room(&self) -> bool {
        self.running.len() < self.plan.max_sequences
    }

    pub fn speculates(&self) -> bool {
        self.drafter.is_some()
    }

    /// Prompt tokens that were not computed since the last reset, because others began alike; None without that cache.
    pub fn prefix_tokens(&self) -> Option<usize> {
        self.prefixes.as_ref().map(|_| self.prefix_tokens)
    }

    /// Bytes of the draft model's weights.
    pub fn draft_bytes(&self) -> usize {
        self.drafter.as_ref().map_or(0, Drafter::weights_bytes)
    }

    /// Takes in a prompt that has been checked.
    ///
    /// `left` tokens are to come; then the request leaves, or `stays` to be asked for more.
    pub fn submit(&mut self, id: String, prompt: &[u32], left: usize, stays: bool, decoding: Decoding) {
        self.submitted += 1;
        let mut sequence = Sequence::default();
        let prefix = self.prefixes.as_mut().and_then(|known| known.begin(prompt, &mut sequence, &mut self.pages));
        self.prefix_tokens += sequence.len;
        self.running.push(Running {
            id,
            decoding,
            key: self.submitted,
            computed: sequence.len,
            sequence,
            tokens: prompt.to_vec(),
            prompt_len: prompt.len(),
            left,
            stays,
            guesses: Vec::new(),
            held: VecDeque::new(),
            prefix,
            is_kept: true,
        });
    }

    /// Runs passes until a token came; at most one of each request. Empty where nothing is in flight.
    ///
    /// Where a pass gave a request several, each of the next calls hands out one at once, before anything is computed.
    pub fn step(&mut self) -> Result<Vec<(String, u32)>> {
        loop {
            let pairs = self.hand_out();
            if !pairs.is_empty() || self.running.is_empty() {
                return Ok(pairs);
            }
            self.advance()?;
        }
    }

    /// Positions that the only request in flight still has room for.
    pub fn room(&self) -> usize {
        match self.running.first() {
            Some(_) if self.plan.context_shift => usize::MAX,
            Some(running) => (self.plan.context_tokens + 1 + running.held.len()).saturating_sub(running.tokens.len()),
            None => 0,
        }
    }

    /// Drops all requests.
    pub fn clear(&mut self) {
        for mut running in std::mem::take(&mut self.running) {
            self.end(&mut running);
        }
        self.speculation = Speculation::default();
        self.prefix_tokens = 0;
    }

    fn hand_out(&mut self) -> Vec<(String, u32)> {
        let mut pairs = Vec::new();
        for running in &mut self.running {
            if let Some(token) = running.held.pop_front() {
                pairs.push((running.id.clone(), token));
            }
        }
        let (ended, running) = std::mem::take(&mut self.running)
            .into_iter()
            .partition(|running: &Running| !running.stays && running.left == 0 && running.held.is_empty());
        self.running = running;
        for mut running in ended {
            self.end(&mut running);
        }
        pairs
    }

    fn end(&mut self, running: &mut Running) {
        running.sequence.truncate(0, &mut self.pages);
        if let Some(drafter) = &mut self.drafter {
            drafter.forget(running.key);
        }
    }

    /// One pass.
    fn advance(&mut self) -> Result<()> {
        self.shift_full()?;
        self.draft()?;
        let counts = self.share_out();
        for (running, count) in self.running.iter_mut().zip(&counts) {
            running.sequence.reserve(running.sequence.len + count, &mut self.pages)?;
        }
        let ids: Vec<Vec<u32>> = self
            .running
            .iter()
            .zip(&counts)
            .map(|(running, count)| {
                let rest = running.tokens[running.computed..].iter().chain(&running.guesses);
                rest.copied().take(*count).collect()
            })
            .collect();
        let pieces: Vec<Piece<'_>> = self
            .running
            .iter()
            .zip(&ids)
            .filter(|(_, ids)| !ids.is_empty())
            .map(|(running, ids)| Piece {
                ids,
                start: running.sequence.len,
                pages: &running.sequence.pages,
                outputs: match running.computed + ids.len() {
                    _ if running.generates() => Outputs::All,
                    end if end == running.prompt_len => Outputs::Last,
                    _ => Outputs::None,
                },
            })
            .collect();
        let rows = self.graph.run(&pieces, &mut self.pages)?;
        drop(pieces);
        let chosen = self.choose(&counts, rows)?;
        self.take_in(&counts, &chosen);
        Ok(())
    }

    /// An id for every row of output, each request's by its own rule.
    fn choose(&mut self, counts: &[usize], rows: usize) -> Result<Vec<u32>> {
        if self.running.iter().all(|running| running.decoding.sampler.is_none()) {
            return self.graph.choose(rows);
        }
        let mut owners = Vec::with_capacity(rows);
        for (index, (running, count)) in self.running.iter().zip(counts).enumerate() {
            let outputs = match running.computed + count {
                _ if running.generates() => *count,
                end => usize::from(*count > 0 && end == running.prompt_len),
            };
            owners.extend(std::iter::repeat_n(index, outputs));
        }
        let running = &mut self.running;
        self.graph.choose_by(rows, |row, logits| match &mut running[owners[row]].decoding.sampler {
            Some(sampler) => sampler.draw(logits),
            None => argmax(logits) as u32,
        })
    }

    /// Makes room in contexts that are full.
    fn shift_full(&mut self) -> Result<()> {
        if !self.plan.context_shift {
            return Ok(());
        }
        let model = self.graph.model.clone();
        let rope = model.rope.as_ref().expect("checked when the session was made");
        for running in &mut self.running {
            if running.sequence.len >= self.plan.context_tokens {
                shift(&mut running.sequence, &mut self.pages, rope)?;
                running.is_kept = false;
            }
        }
        Ok(())
    }

    fn draft(&mut self) -> Result<()> {
        let Some(drafter) = &mut self.drafter else { return Ok(()) };
        let plan = self.plan;
        let wish = |running: &Running| {
            let room = plan.context_tokens.saturating_sub(running.sequence.len + 1);
            plan.draft_tokens.min(running.left.saturating_sub(1)).min(room)
        };
        let asking = || self.running.iter().filter(|running| running.generates());
        let wishes: Vec<Wish<'_>> =
            asking().map(|each| Wish { key: each.key, tokens: &each.tokens, most: wish(each) }).collect();
        let guesses = drafter.guess(&wishes)?;
        drop(wishes);
        let asking = self.running.iter_mut().filter(|running| running.generates());
        for (running, guesses) in asking.zip(guesses) {
            running.guesses = guesses;
        }
        Ok(())
    }

    /// How many rows each request gets.
    fn share_out(&self) -> Vec<usize> {
        let generating: usize =
            self.running.iter().filter(|each| each.generates()).map(|each| 1 + each.guesses.len()).sum();
        // Prompts beside running sequences make those wait for the whole pass, so they get half as much of it.
        let chunk = if generating > 0 { (self.plan.prompt_chunk / 2).max(1) } else { self.plan.prompt_chunk };
        let mut left = chunk.saturating_sub(generating).max(1);
        let share = |running: &Running| {
            if running.generates() {
                return 1 + running.guesses.len();
            }
            let count = left.min(running.prompt_len - running.computed);
            left -= count;
            count
        };
        self.running.iter().map(share).collect()
    }

    /// Enters what a pass has chosen: `chosen` has a token for every row of output.
    fn take_in(&mut self, counts: &[usize], chosen: &[u32]) {
        let mut chosen = chosen.iter().copied();
        for (running, count) in self.running.iter_mut().zip(counts).filter(|(_, count)| **count > 0) {
            let generated = running.generates();
            let mut stays = *count;
            if generated {
                let answers: Vec<u32> = chosen.by_ref().take(*count).collect();
                let right = running.guesses.iter().zip(&answers).take_while(|(guess, answer)| guess == answer).count();
                stays = 1 + right;
                running.tokens.extend_from_slice(&answers[..stays]);
                running.held.extend(&answers[..stays]);
                running.left = running.left.saturating_sub(stays);
                self.speculation.guessed += running.guesses.len();
                self.speculation.accepted += right;
                self.speculation.steps += 1;
                self.speculation.tokens += stays;
                running.guesses.clear();
            }
            running.computed += stays;
            running.sequence.len += stays;
            running.sequence.truncate(running.sequence.len, &mut self.pages);
            if !generated && running.generates() {
                let first = chosen.next().expect("a row for the end of every prompt");
                running.tokens.push(first);
                running.held.push_back(first);
                running.left = running.left.saturating_sub(1);
            }
            if running.tokens.last().is_some_and(|last| running.decoding.end_ids.contains(last)) && running.generates()
            {
                running.left = 0;
            }
            keep_pages(running, stays, self.prefixes.as_mut(), &mut self.pages);
            if self.plan.window > 0 {
                let first = (running.sequence.len + 1).saturating_sub(self.plan.window);
                running.sequence.forget_before(first, &mut self.pages);
            }
        }
    }
}

/// Shows the prefix cache the pages that the last `count` tokens have filled.
fn keep_pages(running: &mut Running, count: usize, prefixes: Option<&mut PrefixCache>, pages: &mut Pages) {
    let Some(prefixes) = prefixes.filter(|_| running.is_kept) else { return };
    let end = running.sequence.len / PAGE_TOKENS;
    for index in (running.sequence.len - count) / PAGE_TOKENS..end {
        let tokens = &running.tokens[index * PAGE_TOKENS..(index + 1) * PAGE_TOKENS];
        running.prefix = prefixes.keep(running.prefix, tokens, running.sequence.pages[index], pages);
        if running.prefix.is_none() {
            running.is_kept = false;
            return;
        }
    }
}
