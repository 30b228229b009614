//! The radix tree against a naive model: every cached prefix listed in full, found by looking at all of them.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{NodeId, PagePool, RadixTree};

/// What is known of one cached page, keyed by all tokens up to its end.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Entry {
    page: u32,
    last_use: u64,
    num_locks: usize,
}

#[derive(Debug, Default)]
struct Model {
    entries: BTreeMap<Vec<u32>, Entry>,
    now: u64,
}

impl Model {
    /// The prefixes of `tokens` that end a page, shortest first.
    fn prefixes(page_size: usize, tokens: &[u32], num_pages: usize) -> impl Iterator<Item = Vec<u32>> + '_ {
        (1..=num_pages).map(move |n| tokens[..n * page_size].to_vec())
    }

    fn num_cached(&self, page_size: usize, tokens: &[u32]) -> usize {
        let num_pages = tokens.len() / page_size;
        Self::prefixes(page_size, tokens, num_pages).take_while(|key| self.entries.contains_key(key)).count()
    }

    /// Uses the first pages of `tokens`, and adds `locks` to each.
    fn touch(&mut self, page_size: usize, tokens: &[u32], num_pages: usize, locks: isize) {
        self.now += 1;
        for key in Self::prefixes(page_size, tokens, num_pages) {
            let entry = self.entries.get_mut(&key).expect("a cached prefix");
            entry.last_use = self.now;
            entry.num_locks = entry.num_locks.checked_add_signed(locks).expect("a locked prefix");
        }
    }

    /// Caches the pages that follow the cached ones.
    fn insert(&mut self, page_size: usize, tokens: &[u32], pages: &[u32], num_locks: usize) {
        for (key, &page) in Self::prefixes(page_size, tokens, pages.len()).zip(pages) {
            self.entries.entry(key).or_insert(Entry { page, last_use: self.now, num_locks });
        }
    }

    /// Removes the unlocked page without a continuation that was used longest ago.
    fn evict_one(&mut self) -> Option<u32> {
        let is_leaf =
            |key: &Vec<u32>| !self.entries.keys().any(|k| k.len() > key.len() && k.starts_with(key));
        let unlocked = self.entries.iter().filter(|(key, entry)| entry.num_locks == 0 && is_leaf(key));
        let key = unlocked.min_by_key(|(_, entry)| entry.last_use)?.0.clone();
        Some(self.entries.remove(&key)?.page)
    }
}

/// A sequence that holds pages, as the scheduler has it.
#[derive(Debug)]
struct Holder {
    tokens: Vec<u32>,
    pages: Vec<u32>,
    node: NodeId,
    num_locked: usize,
}

#[derive(Clone, Debug)]
enum Op {
    /// A new sequence with these tokens locks what is cached and takes pages for the rest.
    Start(Vec<u32>),
    /// A sequence caches its first pages, that many of ten.
    Extend(usize, usize),
    /// A sequence ends and leaves its first pages, that many of ten.
    Finish(usize, usize),
    Evict(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => prop::collection::vec(0..2u32, 1..24).prop_map(Op::Start),
        3 => (any::<usize>(), 0..=10usize).prop_map(|(idx, share)| Op::Extend(idx, share)),
        3 => (any::<usize>(), 0..=10usize).prop_map(|(idx, share)| Op::Finish(idx, share)),
        2 => (1..6usize).prop_map(Op::Evict),
    ]
}

struct Machine {
    page_size: usize,
    tree: RadixTree,
    pool: PagePool,
    model: Model,
    holders: Vec<Holder>,
}

impl Machine {
    fn new(page_size: usize) -> Self {
        let (tree, pool) = (RadixTree::new(page_size), PagePool::new(64));
        Self { page_size, tree, pool, model: Model::default(), holders: Vec::new() }
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Start(ref tokens) => self.start(tokens.clone()),
            Op::Extend(idx, share) if !self.holders.is_empty() => {
                let idx = idx % self.holders.len();
                self.extend(idx, share);
            }
            Op::Finish(idx, share) if !self.holders.is_empty() => {
                let holder = self.holders.swap_remove(idx % self.holders.len());
                self.finish(holder, share);
            }
            Op::Evict(num_pages) => self.evict(num_pages),
            Op::Extend(..) | Op::Finish(..) => {}
        }
        self.check();
    }

    fn start(&mut self, tokens: Vec<u32>) {
        let num_pages = tokens.len() / self.page_size;
        let expected = self.model.num_cached(self.page_size, &tokens);
        assert_eq!(self.tree.num_cached(&tokens, num_pages), expected, "cached pages of {tokens:?}");
        let mut pages = Vec::new();
        let node = self.tree.lock_prefix(&tokens, num_pages, &mut pages);
        self.model.touch(self.page_size, &tokens, pages.len(), 1);
        let keys = Model::prefixes(self.page_size, &tokens, expected);
        let cached: Vec<u32> = keys.map(|key| self.model.entries[&key].page).collect();
        assert_eq!(pages, cached, "locked pages of {tokens:?}");
        pages.iter().for_each(|&page| self.pool.hold(page));
        let num_locked = pages.len();
        while pages.len() < num_pages {
            if self.pool.num_free() == 0 {
                self.evict(1);
            }
            let Some(page) = self.pool.alloc() else { break };
            pages.push(page);
        }
        self.holders.push(Holder { tokens, pages, node, num_locked });
    }

    fn extend(&mut self, idx: usize, share: usize) {
        let holder = &mut self.holders[idx];
        let num_pages = (holder.pages.len() * share / 10).max(holder.num_locked);
        let pages = &holder.pages[..num_pages];
        let next = &holder.tokens[..((holder.num_locked + 1) * self.page_size).min(holder.tokens.len())];
        let is_taken = self.model.entries.contains_key(next);
        let expected = if is_taken { holder.num_locked } else { num_pages };
        (holder.node, holder.num_locked) =
            self.tree.extend(holder.node, holder.num_locked, &holder.tokens, pages, &mut self.pool);
        assert_eq!(holder.num_locked, expected, "locked pages after {holder:?} was extended");
        self.model.insert(self.page_size, &holder.tokens, &pages[..expected], 1);
    }

    fn finish(&mut self, holder: Holder, share: usize) {
        let Holder { tokens, pages, node, num_locked } = holder;
        let num_left = (pages.len() * share / 10).max(num_locked);
        self.tree.finish(node, num_locked, &tokens, &pages[..num_left], &mut self.pool);
        self.model.touch(self.page_size, &tokens, num_locked, -1);
        self.model.insert(self.page_size, &tokens, &pages[..num_left], 0);
        self.model.touch(self.page_size, &tokens, num_left, 0);
        pages.iter().for_each(|&page| self.pool.release(page));
    }

    fn evict(&mut self, num_pages: usize) {
        let expected = (0..num_pages).map_while(|_| self.model.evict_one()).count();
        assert_eq!(self.tree.evict(num_pages, &mut self.pool), expected, "evicted pages");
    }

    fn check(&self) {
        let locked: Vec<NodeId> = self.holders.iter().map(|holder| holder.node).collect();
        self.tree.check_invariants(&locked);
        let mut expected = vec![0; self.pool.num_pages()];
        self.tree.count_holders(&mut expected);
        let cached: Vec<u32> = self.model.entries.values().map(|entry| entry.page).collect();
        let mut of_model = vec![0; self.pool.num_pages()];
        cached.iter().for_each(|&page| of_model[page as usize] += 1);
        assert_eq!(expected, of_model, "pages of the tree, of the model");
        for holder in &self.holders {
            holder.pages.iter().for_each(|&page| expected[page as usize] += 1);
            assert_eq!(self.tree.path(holder.node), holder.pages[..holder.num_locked], "path of {holder:?}");
        }
        self.pool.check_invariants(&expected);
        for key in self.model.entries.keys() {
            let num_pages = key.len() / self.page_size;
            assert_eq!(self.tree.num_cached(key, num_pages), num_pages, "prefix {key:?} is cached");
        }
        let num_evictable = self.model.entries.values().filter(|entry| entry.num_locks == 0).count();
        assert_eq!(self.tree.num_evictable_pages(), num_evictable, "evictable pages");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn radix_tree_is_the_naive_model(
        page_size in prop::sample::select(vec![1usize, 2, 4]),
        ops in prop::collection::vec(op(), 1..60),
    ) {
        let mut machine = Machine::new(page_size);
        ops.iter().for_each(|op| machine.apply(op));
    }
}

/// Two prefixes that part inside a node split it, and each keeps its pages.
#[test]
fn a_partial_match_splits_the_node() {
    let mut machine = Machine::new(2);
    machine.start(vec![1, 1, 2, 2, 3, 3]);
    machine.extend(0, 10);
    assert_eq!(machine.tree.num_nodes(), 1);
    machine.start(vec![1, 1, 2, 2, 4, 4]);
    assert_eq!(machine.tree.num_nodes(), 2);
    assert_eq!(machine.holders[0].pages[..2], machine.holders[1].pages[..2]);
    machine.extend(1, 10);
    assert_eq!(machine.tree.num_nodes(), 3);
    machine.check();
}

/// The chunks of one prompt are one node, however many there are.
#[test]
fn chunks_of_one_prompt_are_one_node() {
    let mut machine = Machine::new(1);
    machine.start((0..20).collect());
    (1..=10).for_each(|share| machine.extend(0, share));
    assert_eq!((machine.tree.num_nodes(), machine.tree.num_pages()), (1, 20));
}

/// What was used longest ago goes first, from its end, and never what is locked.
#[test]
fn eviction_is_least_recently_used_first() {
    let mut machine = Machine::new(1);
    for tokens in [vec![1, 2, 3], vec![5, 6], vec![8, 9]] {
        machine.start(tokens);
        let holder = machine.holders.pop().expect("a holder");
        machine.finish(holder, 10);
    }
    machine.start(vec![5, 6]);
    machine.evict(4);
    assert_eq!(machine.tree.num_cached(&[1, 2, 3], 3), 0);
    assert_eq!(machine.tree.num_cached(&[8, 9], 2), 1);
    machine.evict(10);
    assert_eq!(machine.tree.num_pages(), 2, "the locked prefix stays");
    machine.check();
}
