//! Prompts that begin alike share the pages of what they have in common (option `prefix_cache`).
//!
//! Only whole pages are shared, and only where every token before them is the same too: the key of a page is the page
//! before it and its own tokens, compared one by one, so nothing rests on a hash.

use std::collections::HashMap;

use cpu_kernels::PAGE_TOKENS;

use crate::kv::{PageId, Pages, Sequence};

/// Never used twice, as a page is: whoever comes back to a node that is gone finds nothing.
pub type NodeId = u64;

type Key = (Option<NodeId>, Box<[u32]>);

struct Node {
    page: PageId,
    key: Key,
    children: usize,
    last_used: u64,
}

/// Pages by what led to them; each is held once by this cache.
pub struct PrefixCache {
    by_key: HashMap<Key, NodeId>,
    nodes: HashMap<NodeId, Node>,
    most_pages: usize,
    /// Counts uses, and names nodes.
    uses: u64,
}

impl PrefixCache {
    /// A cache that keeps at most `most_pages` pages alive beside those of sequences.
    pub fn new(most_pages: usize) -> Self {
        Self { by_key: HashMap::new(), nodes: HashMap::new(), most_pages, uses: 0 }
    }

    /// Lets a new sequence begin with the pages that are there for its prompt; at least one token is left to compute.
    ///
    /// Returns the node of the last of them, which [`PrefixCache::keep`] goes on from.
    pub fn begin(&mut self, prompt: &[u32], sequence: &mut Sequence, pages: &mut Pages) -> Option<NodeId> {
        self.uses += 1;
        let mut last = None;
        for tokens in prompt[..prompt.len() - 1].chunks_exact(PAGE_TOKENS) {
            let Some(id) = self.by_key.get(&(last, tokens.into())) else { break };
            let node = self.nodes.get_mut(id).expect("every key has its node");
            node.last_used = self.uses;
            pages.share(node.page);
            sequence.pages.push(node.page);
            sequence.len += PAGE_TOKENS;
            last = Some(*id);
        }
        last
    }

    /// Keeps a page that is full, after the node `last`; returns what the next page comes after.
    pub fn keep(&mut self, last: Option<NodeId>, tokens: &[u32], page: PageId, pages: &mut Pages) -> Option<NodeId> {
        self.uses += 1;
        let id = self.uses;
        let key: Key = (last, tokens.into());
        if let Some(known) = self.by_key.get(&key) {
            return Some(*known);
        }
        if let Some(last) = last {
            self.nodes.get_mut(&last)?.children += 1; // nothing where what it follows has been dropped meanwhile
        }
        pages.share(page);
        self.by_key.insert(key.clone(), id);
        self.nodes.insert(id, Node { page, key, children: 0, last_used: id });
        while self.nodes.len() > self.most_pages {
            self.drop_oldest(id, pages);
        }
        Some(id)
    }

    /// Drops the leaf that has not been used for longest, but `new` last of all.
    fn drop_oldest(&mut self, new: NodeId, pages: &mut Pages) {
        let leaves = self.nodes.iter().filter(|(id, node)| node.children == 0 && **id != new);
        let oldest = leaves.min_by_key(|(_, node)| node.last_used).map_or(new, |(id, _)| *id);
        let Some(node) = self.nodes.remove(&oldest) else { return };
        if let Some(parent) = node.key.0.and_then(|parent| self.nodes.get_mut(&parent)) {
            parent.children -= 1;
        }
        self.by_key.remove(&node.key);
        pages.give_back(node.page);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cpu_kernels::{KvLayout, KvType};

    fn prompt(seed: u32, pages: usize) -> Vec<u32> {
        (0..(pages * PAGE_TOKENS) as u32).map(|i| i * 7 + seed).collect()
    }

    fn run(cache: &mut PrefixCache, prompt: &[u32], pages: &mut Pages) -> (Sequence, usize) {
        let mut sequence = Sequence::default();
        let mut last = cache.begin(prompt, &mut sequence, pages);
        let found = sequence.len;
        sequence.reserve(prompt.len(), pages).unwrap();
        for (index, tokens) in prompt.chunks_exact(PAGE_TOKENS).enumerate().skip(found / PAGE_TOKENS) {
            last = cache.keep(last, tokens, sequence.pages[index], pages);
        }
        (sequence, found)
    }

    #[test]
    fn a_prompt_takes_the_pages_of_what_it_begins_with_and_computes_its_last_token() {
        let mut pages = Pages::new(KvLayout { kind: KvType::F16, kv_heads: 1, head_dim: 32 }, 1);
        let mut cache = PrefixCache::new(100);
        let (first, found) = run(&mut cache, &prompt(0, 3), &mut pages);
        assert_eq!(found, 0);
        let (again, found) = run(&mut cache, &prompt(0, 3), &mut pages);
        assert_eq!(found, 2 * PAGE_TOKENS, "of three full pages the last holds the token to compute");
        assert_eq!(again.pages[..2], first.pages[..2]);
        let mut other = prompt(0, 3);
        other[PAGE_TOKENS] += 1;
        let (_, found) = run(&mut cache, &other, &mut pages);
        assert_eq!(found, PAGE_TOKENS);
        other[0] += 1;
        assert_eq!(run(&mut cache, &other, &mut pages).1, 0);
    }

    #[test]
    fn the_pages_not_used_for_longest_go_first_and_all_come_back() {
        let mut pages = Pages::new(KvLayout { kind: KvType::F16, kv_heads: 1, head_dim: 32 }, 1);
        let mut cache = PrefixCache::new(4);
        for seed in [0, 1, 0, 2] {
            let (mut sequence, _) = run(&mut cache, &prompt(seed, 2), &mut pages);
            sequence.truncate(0, &mut pages);
            assert!(cache.nodes.len() <= 4);
        }
        let (mut sequence, found) = run(&mut cache, &prompt(0, 2), &mut pages);
        assert_eq!(found, PAGE_TOKENS, "used last but one");
        sequence.truncate(0, &mut pages);
        assert_eq!(pages.held(), cache.nodes.len());
    }
}
