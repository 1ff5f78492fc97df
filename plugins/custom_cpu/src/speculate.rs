//! Guesses of what comes next, for the model to check several at once: what is generated stays the same.
//!
//! Leviathan et al. 2023 (arXiv:2211.17192) with greedy choice: a guess counts where it is the model's own choice.

use std::collections::HashMap;

use cpu_kernels::PAGE_TOKENS;
use enginecmp_shim::Result;

use crate::graph::{Graph, Outputs, Piece};
use crate::kv::{Pages, Sequence};

/// One sequence that wants guesses.
pub struct Wish<'a> {
    /// Which sequence; the same number means that `tokens` has only grown, or was cut where guesses were wrong.
    pub key: u64,
    /// Everything so far, the prompt included.
    pub tokens: &'a [u32],
    /// Most guesses.
    pub most: usize,
}

/// Where guesses come from.
pub enum Drafter {
    /// From the text itself: what followed the last time the same `lookup` tokens were there (prompt lookup decoding,
    /// Saxena 2023).
    Lookup(usize),
    /// From a smaller model of the same vocabulary.
    Model(Box<DraftModel>),
}

impl Drafter {
    /// Guesses for every wish, at most as many as it wants.
    pub fn guess(&mut self, wishes: &[Wish<'_>]) -> Result<Vec<Vec<u32>>> {
        match self {
            Self::Lookup(length) => Ok(wishes.iter().map(|wish| look_up(wish.tokens, *length, wish.most)).collect()),
            Self::Model(model) => model.guess(wishes),
        }
    }

    /// Forgets a sequence that has ended.
    pub fn forget(&mut self, key: u64) {
        if let Self::Model(model) = self
            && let Some(mut known) = model.known.remove(&key)
        {
            known.sequence.truncate(0, &mut model.pages);
        }
    }

    pub fn weights_bytes(&self) -> usize {
        match self {
            Self::Lookup(_) => 0,
            Self::Model(model) => model.graph.model.weights_bytes(),
        }
    }
}

/// What followed the latest earlier place with the same last `length` tokens.
fn look_up(tokens: &[u32], length: usize, most: usize) -> Vec<u32> {
    let Some(start) = tokens.len().checked_sub(length).filter(|start| *start > 0) else {
        return Vec::new();
    };
    let pattern = &tokens[start..];
    match tokens[..tokens.len() - 1].windows(length).rposition(|window| window == pattern) {
        Some(place) => tokens[place + length..].iter().copied().take(most).collect(),
        None => Vec::new(),
    }
}

/// A second model that runs ahead.
pub struct DraftModel {
    graph: Graph,
    pages: Pages,
    context_tokens: usize,
    prompt_chunk: usize,
    known: HashMap<u64, Known>,
}

/// What the draft model has computed of a sequence.
#[derive(Default)]
struct Known {
    sequence: Sequence,
    /// The ids at the sequence's positions.
    ids: Vec<u32>,
    /// How many of the text's first tokens it has left behind.
    skipped: usize,
}

impl DraftModel {
    pub fn new(graph: Graph, pages: Pages, context_tokens: usize, prompt_chunk: usize) -> Self {
        Self { graph, pages, context_tokens, prompt_chunk, known: HashMap::new() }
    }

    fn guess(&mut self, wishes: &[Wish<'_>]) -> Result<Vec<Vec<u32>>> {
        let mut guesses = vec![Vec::new(); wishes.len()];
        // What each sequence has to run before its next guess.
        let mut waiting: Vec<Vec<u32>> = Vec::with_capacity(wishes.len());
        for wish in wishes {
            waiting.push(self.catch_up(wish)?);
        }
        let rounds = wishes.iter().map(|wish| wish.most).max().unwrap_or(0);
        for _ in 0..rounds {
            let asking: Vec<usize> =
                (0..wishes.len()).filter(|index| guesses[*index].len() < wishes[*index].most).collect();
            let chosen = self.step(wishes, &asking, &waiting)?;
            for (index, id) in asking.into_iter().zip(chosen) {
                guesses[index].push(id);
                waiting[index] = vec![id];
            }
        }
        Ok(guesses)
    }

    /// Goes back to what is still true of a sequence and runs all but the last piece of what is new.
    fn catch_up(&mut self, wish: &Wish<'_>) -> Result<Vec<u32>> {
        if wish.most == 0 {
            return Ok(Vec::new());
        }
        let known = self.known.entry(wish.key).or_default();
        let visible = &wish.tokens[known.skipped..];
        let same = known.ids.iter().zip(visible).take_while(|(known, token)| known == token).count();
        let mut same = same.min(visible.len() - 1); // the last token is run again: its guess is wanted
        let mut visible = visible;
        if visible.len() + wish.most > self.context_tokens {
            // Its own context is full. It starts again with the later half: these are guesses, so any text will do.
            known.skipped = wish.tokens.len() - (self.context_tokens / 2).clamp(1, wish.tokens.len());
            visible = &wish.tokens[known.skipped..];
            same = 0;
        }
        known.sequence.truncate(same, &mut self.pages);
        known.ids.truncate(same);
        let mut rest = &visible[same..];
        while rest.len() > self.prompt_chunk {
            let (ids, after) = rest.split_at(self.prompt_chunk);
            run(&mut self.graph, &mut self.pages, &mut [(&mut *known, ids)], Outputs::None)?;
            rest = after;
        }
        Ok(rest.to_vec())
    }

    fn step(&mut self, wishes: &[Wish<'_>], asking: &[usize], waiting: &[Vec<u32>]) -> Result<Vec<u32>> {
        let mut taken: Vec<(u64, Known)> = asking
            .iter()
            .map(|index| wishes[*index].key)
            .map(|key| (key, self.known.remove(&key).unwrap_or_default()))
            .collect();
        let mut pieces: Vec<(&mut Known, &[u32])> =
            taken.iter_mut().zip(asking).map(|((_, known), index)| (known, waiting[*index].as_slice())).collect();
        let done = run(&mut self.graph, &mut self.pages, &mut pieces, Outputs::Last);
        self.known.extend(taken);
        self.graph.choose(done?)
    }
}

fn run(graph: &mut Graph, pages: &mut Pages, work: &mut [(&mut Known, &[u32])], outputs: Outputs) -> Result<usize> {
    for (known, ids) in work.iter_mut() {
        known.sequence.reserve(known.sequence.len + ids.len(), pages)?;
    }
    let pieces: Vec<Piece<'_>> = work
        .iter()
        .map(|(known, ids)| Piece { ids, start: known.sequence.len, pages: &known.sequence.pages, outputs })
        .collect();
    let rows = graph.run(&pieces, pages)?;
    for (known, ids) in work.iter_mut() {
        known.sequence.len += ids.len();
        known.ids.extend_from_slice(ids);
    }
    Ok(rows)
}

/// Tokens that a session's draft may hold at least: a page, so that half of it is a text.
pub const LEAST_CONTEXT: usize = PAGE_TOKENS;

#[cfg(test)]
mod tests {
    use super::look_up;

    #[test]
    fn a_lookup_finds_what_followed_last_time() {
        let text = [1, 2, 3, 4, 1, 2, 9, 8, 1, 2];
        assert_eq!(look_up(&text, 2, 3), [9, 8, 1]);
        assert_eq!(look_up(&text, 2, 1), [9]);
        assert_eq!(look_up(&text, 3, 4), [] as [u32; 0]);
        assert_eq!(look_up(&[5, 5, 5], 1, 4), [5], "the latest place may overlap the end");
        assert_eq!(look_up(&[5, 5], 2, 4), [] as [u32; 0]);
        assert_eq!(look_up(&[5], 1, 4), [] as [u32; 0]);
        assert_eq!(look_up(&text, 2, 0), [] as [u32; 0]);
    }
}
