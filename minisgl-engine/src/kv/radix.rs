use std::collections::{BTreeSet, HashMap};

use super::{KeyIsHash, PagePool, hash_tokens};

/// A prefix tree over whole pages of tokens: which computed pages can serve a new prompt.
///
/// Each node holds a run of pages and their tokens; a path from the root spells a prefix. Runs are split where
/// two prefixes part, always between pages (RadixAttention: Zheng et al., "SGLang: Efficient Execution of
/// Structured Language Model Programs", 2024, section 3, here on pages rather than tokens).
///
/// Children are found through one table for the whole tree, keyed by a hash of the parent and the tokens of the
/// child's first page. The tokens are compared on every hit, so that a collision costs a cached page and never a
/// wrong one.
///
/// A node is locked once for each running sequence whose pages end in it or below it. Pages of unlocked nodes can
/// be evicted, least recently used leaf first. Unlocked leaves stand in an ordered set, so that finding the next
/// victim never walks the tree: O(log leaves) each.
#[derive(Debug)]
pub struct RadixTree {
    page_size: usize,
    nodes: Vec<Node>,
    vacant: Vec<NodeId>,
    children: HashMap<u64, NodeId, KeyIsHash>,
    /// Unlocked leaves by the time of their last use.
    evictable: BTreeSet<(u64, NodeId)>,
    num_pages: usize,
    num_evictable_pages: usize,
    /// Counts uses: the order in time of anything here.
    now: u64,
    version: u64,
}

/// Names a node of a [`RadixTree`] while it is locked, or the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeId(u32);

#[derive(Debug)]
struct Node {
    parent: NodeId,
    /// Key in the table of children.
    key: u64,
    tokens: Vec<u32>,
    pages: Vec<u32>,
    num_locks: u32,
    num_children: u32,
    last_use: u64,
}

impl RadixTree {
    /// The node of the empty prefix: always there, never locked.
    pub const ROOT: NodeId = NodeId(0);

    /// An empty tree over pages of `page_size` tokens.
    pub fn new(page_size: usize) -> Self {
        let root = Node {
            parent: Self::ROOT,
            key: 0,
            tokens: Vec::new(),
            pages: Vec::new(),
            num_locks: 0,
            num_children: 0,
            last_use: 0,
        };
        Self {
            page_size,
            nodes: vec![root],
            vacant: Vec::new(),
            children: HashMap::default(),
            evictable: BTreeSet::new(),
            num_pages: 0,
            num_evictable_pages: 0,
            now: 0,
            version: 0,
        }
    }

    /// Pages that the tree holds.
    pub fn num_pages(&self) -> usize {
        self.num_pages
    }

    /// Pages that [`evict`](Self::evict) can free: those of unlocked nodes.
    pub fn num_evictable_pages(&self) -> usize {
        self.num_evictable_pages
    }

    /// Nodes, the root not counted.
    pub fn num_nodes(&self) -> usize {
        self.nodes.len() - 1 - self.vacant.len()
    }

    /// Changes whenever prefixes are added to the cached ones.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// How many pages of `tokens`, at most `max_pages`, are cached. Changes nothing.
    pub fn num_cached(&self, tokens: &[u32], max_pages: usize) -> usize {
        let (mut node, mut depth) = (Self::ROOT, 0);
        while depth < max_pages {
            let Some((child, num_equal)) = self.find_child(node, tokens, depth, max_pages) else { break };
            depth += num_equal;
            if num_equal < self.nodes[child.idx()].pages.len() {
                break;
            }
            node = child;
        }
        depth
    }

    /// Finds the longest cached prefix of `tokens`, at most `max_pages` pages, locks it and appends its pages to
    /// `pages`. Returns the node in which it ends: to be unlocked when the sequence lets its pages go. The node
    /// is split where the prefix ends inside of it.
    pub fn lock_prefix(&mut self, tokens: &[u32], max_pages: usize, pages: &mut Vec<u32>) -> NodeId {
        self.now += 1;
        let (mut node, mut depth) = (Self::ROOT, 0);
        while depth < max_pages {
            let Some((child, num_equal)) = self.find_child(node, tokens, depth, max_pages) else { break };
            node = self.split(child, num_equal);
            pages.extend_from_slice(&self.nodes[node.idx()].pages);
            depth += num_equal;
        }
        self.lock(node);
        node
    }

    /// Caches the pages of a running sequence beyond those that it has locked. `node` is what it has locked, at a
    /// depth of `num_locked` pages; `tokens` and `pages` are the sequence's from its beginning. Returns the node
    /// and depth that are locked instead.
    ///
    /// Stops where the tree has the same tokens in another page: the sequence goes on with its own and keeps
    /// none of the other's alive.
    pub fn extend(
        &mut self,
        node: NodeId,
        num_locked: usize,
        tokens: &[u32],
        pages: &[u32],
        pool: &mut PagePool,
    ) -> (NodeId, usize) {
        if num_locked >= pages.len() {
            return (node, num_locked);
        }
        let key = self.key_of(node, tokens, num_locked);
        if self.children.contains_key(&key) {
            return (node, num_locked);
        }
        self.version += 1;
        self.now += 1;
        let added = &pages[num_locked..];
        added.iter().for_each(|&page| pool.hold(page));
        self.num_pages += added.len();
        let added_tokens = &tokens[num_locked * self.page_size..pages.len() * self.page_size];
        let tail = &mut self.nodes[node.idx()];
        if node != Self::ROOT && tail.num_children == 0 && tail.num_locks == 1 {
            // Nobody else ends here: the chunks of one long prompt stay one node.
            tail.tokens.extend_from_slice(added_tokens);
            tail.pages.extend_from_slice(added);
            return (node, pages.len());
        }
        let leaf = self.insert(Node {
            parent: node,
            key,
            tokens: added_tokens.to_vec(),
            pages: added.to_vec(),
            num_locks: 1,
            num_children: 0,
            last_use: self.now,
        });
        // The lock moves down by one node: every node above keeps its count.
        (leaf, pages.len())
    }

    /// Unlocks `node` after caching what the sequence leaves: `tokens` and `pages` from its beginning, of which
    /// the first `num_locked` pages end in `node`. Pages for tokens that are already cached are not taken; the
    /// caller gives up its own hold on every page afterwards.
    pub fn finish(
        &mut self,
        node: NodeId,
        num_locked: usize,
        tokens: &[u32],
        pages: &[u32],
        pool: &mut PagePool,
    ) {
        self.now += 1;
        let (mut end, mut depth) = (node, num_locked);
        while depth < pages.len() {
            let Some((child, num_equal)) = self.find_child(end, tokens, depth, pages.len()) else { break };
            end = self.split(child, num_equal);
            depth += num_equal;
        }
        if end != node {
            self.lock(end);
            self.unlock(node);
        }
        let (end, _) = self.extend(end, depth, tokens, pages, pool);
        self.unlock(end);
    }

    /// Takes back one lock.
    pub fn unlock(&mut self, node: NodeId) {
        self.now += 1;
        let mut at = node;
        while at != Self::ROOT {
            let entry = &mut self.nodes[at.idx()];
            assert!(entry.num_locks > 0, "prefix node {} is unlocked twice", at.0);
            entry.num_locks -= 1;
            entry.last_use = self.now;
            let parent = entry.parent;
            if entry.num_locks == 0 {
                self.num_evictable_pages += entry.pages.len();
                self.note_if_evictable(at);
            }
            at = parent;
        }
    }

    /// Frees up to `num_pages` pages, least recently used leaf first; returns how many.
    pub fn evict(&mut self, num_pages: usize, pool: &mut PagePool) -> usize {
        let mut num_freed = 0;
        while num_freed < num_pages {
            let Some((last_use, leaf)) = self.evictable.pop_first() else { break };
            let entry = &mut self.nodes[leaf.idx()];
            let num_kept = entry.pages.len().saturating_sub(num_pages - num_freed);
            for page in entry.pages.drain(num_kept..) {
                pool.release(page);
                num_freed += 1;
            }
            if num_kept == 0 {
                self.remove(leaf);
            } else {
                entry.tokens.truncate(num_kept * self.page_size);
                self.evictable.insert((last_use, leaf));
            }
        }
        self.num_pages -= num_freed;
        self.num_evictable_pages -= num_freed;
        num_freed
    }

    /// Adds one to `holders[page]` for each page of the tree.
    pub fn count_holders(&self, holders: &mut [u32]) {
        for node in &self.nodes {
            node.pages.iter().for_each(|&page| holders[page as usize] += 1);
        }
    }

    /// The pages on the path from the root to the end of `node`.
    pub fn path(&self, node: NodeId) -> Vec<u32> {
        let mut runs = Vec::new();
        let mut at = node;
        while at != Self::ROOT {
            runs.push(&self.nodes[at.idx()].pages);
            at = self.nodes[at.idx()].parent;
        }
        runs.into_iter().rev().flatten().copied().collect()
    }

    /// Checks links, counts, the table of children and the set of evictable leaves. `locked` lists the node of
    /// each lock, as often as it is locked.
    ///
    /// # Panics
    /// With what is wrong.
    pub fn check_invariants(&self, locked: &[NodeId]) {
        let mut locks = vec![0; self.nodes.len()];
        for &node in locked {
            let mut at = node;
            while at != Self::ROOT {
                locks[at.idx()] += 1;
                at = self.nodes[at.idx()].parent;
            }
        }
        let mut is_vacant = vec![false; self.nodes.len()];
        self.vacant.iter().for_each(|node| is_vacant[node.idx()] = true);
        let mut num_children = vec![0; self.nodes.len()];
        let (mut num_pages, mut num_evictable_pages, mut num_leaves) = (0, 0, 0);
        for (idx, node) in self.nodes.iter().enumerate().skip(1) {
            if is_vacant[idx] {
                assert!(node.pages.is_empty(), "vacant prefix node {idx} holds pages");
                continue;
            }
            let id = NodeId(idx as u32);
            assert!(!is_vacant[node.parent.idx()], "prefix node {idx} has a vacant parent");
            assert!(!node.pages.is_empty(), "prefix node {idx} is empty");
            assert_eq!(
                node.tokens.len(),
                node.pages.len() * self.page_size,
                "prefix node {idx}: tokens, pages"
            );
            assert_eq!(node.num_locks, locks[idx], "prefix node {idx}: counted locks, found locks");
            assert_eq!(node.key, self.key_of(node.parent, &node.tokens, 0), "prefix node {idx}: key");
            assert_eq!(self.children.get(&node.key), Some(&id), "prefix node {idx} is not found by its key");
            num_children[node.parent.idx()] += 1;
            num_pages += node.pages.len();
            num_evictable_pages += if node.num_locks == 0 { node.pages.len() } else { 0 };
            let is_evictable = node.num_locks == 0 && node.num_children == 0;
            num_leaves += usize::from(is_evictable);
            assert_eq!(
                self.evictable.contains(&(node.last_use, id)),
                is_evictable,
                "prefix node {idx}: listed as evictable (left), is evictable (right)"
            );
        }
        for (idx, node) in self.nodes.iter().enumerate() {
            assert_eq!(node.num_children, num_children[idx], "prefix node {idx}: counted children, found");
        }
        assert_eq!(self.children.len(), self.num_nodes(), "entries in the table of children, nodes");
        assert_eq!(self.evictable.len(), num_leaves, "evictable set, evictable leaves");
        assert_eq!(self.num_pages, num_pages, "pages of the prefix tree: counted, found");
        assert_eq!(self.num_evictable_pages, num_evictable_pages, "evictable pages: counted, found");
    }

    fn key_of(&self, parent: NodeId, tokens: &[u32], depth: usize) -> u64 {
        let first = &tokens[depth * self.page_size..(depth + 1) * self.page_size];
        hash_tokens(u64::from(parent.0) << 32 | 0x9E37_79B9, first)
    }

    /// The child of `node` that continues `tokens` at page `depth`, and how many of its pages agree, up to a
    /// total depth of `max_pages`: at least one.
    fn find_child(
        &self,
        node: NodeId,
        tokens: &[u32],
        depth: usize,
        max_pages: usize,
    ) -> Option<(NodeId, usize)> {
        let &child = self.children.get(&self.key_of(node, tokens, depth))?;
        let entry = &self.nodes[child.idx()];
        let num_pages = entry.pages.len().min(max_pages - depth);
        let wanted = &tokens[depth * self.page_size..(depth + num_pages) * self.page_size];
        let num_tokens = wanted.iter().zip(&entry.tokens).take_while(|(a, b)| a == b).count();
        let num_equal = num_tokens / self.page_size;
        (entry.parent == node && num_equal > 0).then_some((child, num_equal))
    }

    /// Cuts `node` after `num_pages` pages and returns the upper part. The lower part keeps the id, and with it
    /// the locks that end in it and its children.
    fn split(&mut self, node: NodeId, num_pages: usize) -> NodeId {
        let entry = &mut self.nodes[node.idx()];
        if num_pages == entry.pages.len() {
            return node;
        }
        let lower_tokens = entry.tokens.split_off(num_pages * self.page_size);
        let lower_pages = entry.pages.split_off(num_pages);
        let upper = Node {
            parent: entry.parent,
            key: entry.key,
            tokens: std::mem::replace(&mut entry.tokens, lower_tokens),
            pages: std::mem::replace(&mut entry.pages, lower_pages),
            num_locks: entry.num_locks,
            num_children: 1,
            last_use: entry.last_use,
        };
        let upper = self.place(upper);
        let key = self.key_of(upper, &self.nodes[node.idx()].tokens, 0);
        let entry = &mut self.nodes[node.idx()];
        entry.parent = upper;
        entry.key = key;
        self.children.insert(self.nodes[upper.idx()].key, upper);
        self.children.insert(key, node);
        upper
    }

    fn lock(&mut self, node: NodeId) {
        let mut at = node;
        while at != Self::ROOT {
            let entry = &mut self.nodes[at.idx()];
            if entry.num_locks == 0 {
                self.evictable.remove(&(entry.last_use, at));
                self.num_evictable_pages -= entry.pages.len();
            }
            entry.num_locks += 1;
            entry.last_use = self.now;
            at = entry.parent;
        }
    }

    fn note_if_evictable(&mut self, node: NodeId) {
        let entry = &self.nodes[node.idx()];
        if node != Self::ROOT && entry.num_locks == 0 && entry.num_children == 0 {
            self.evictable.insert((entry.last_use, node));
        }
    }

    fn place(&mut self, node: Node) -> NodeId {
        match self.vacant.pop() {
            Some(id) => {
                self.nodes[id.idx()] = node;
                id
            }
            None => {
                self.nodes.push(node);
                NodeId(self.nodes.len() as u32 - 1)
            }
        }
    }

    /// Adds a leaf.
    fn insert(&mut self, leaf: Node) -> NodeId {
        let (parent, key) = (leaf.parent, leaf.key);
        self.nodes[parent.idx()].num_children += 1;
        let id = self.place(leaf);
        self.children.insert(key, id);
        id
    }

    /// Removes an empty leaf; its parent may become one.
    fn remove(&mut self, leaf: NodeId) {
        let entry = &mut self.nodes[leaf.idx()];
        let (parent, key) = (entry.parent, entry.key);
        entry.tokens = Vec::new();
        entry.pages = Vec::new();
        self.children.remove(&key);
        self.vacant.push(leaf);
        self.nodes[parent.idx()].num_children -= 1;
        self.note_if_evictable(parent);
    }
}

impl NodeId {
    fn idx(self) -> usize {
        self.0 as usize
    }
}
