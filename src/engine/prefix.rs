//! Beginnings of sequences that others may go on from: a tree of blocks of 64 tokens under a budget of bytes. What one uid
//! left there no other finds, by content or by time; what a model's template begins with, and what root has published, is
//! everybody's.
//!
//! A leaf that nobody begins with at the moment goes when room is wanted, the one that was used longest ago first.

use crate::base::Token;
use crate::base::limits::ATTN_BLOCK;
use crate::model::{Block, Paging};

/// Whose beginnings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Everybody's.
    Public,
    /// Those of one uid.
    Uid(u32),
}

/// A block in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NodeId(usize);

#[derive(Debug)]
struct Node {
    scope: Scope,
    parent: Option<NodeId>,
    /// The 64 tokens.
    tokens: Box<[Token]>,
    block: Block,
    bytes: u64,
    n_children: usize,
    /// Sequences that began with it.
    n_pins: usize,
    /// When it was last used; a count.
    used: u64,
}

/// The tree of one model.
#[derive(Debug)]
pub(super) struct PrefixCache {
    nodes: Vec<Option<Node>>,
    bytes: u64,
    bytes_max: u64,
    /// Counts uses.
    clock: u64,
}

impl PrefixCache {
    /// An empty tree that may come to hold `bytes_max`.
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { nodes: Vec::new(), bytes: 0, bytes_max, clock: 0 }
    }

    /// Holds at most `bytes_max` from now on.
    pub(super) fn set_max(&mut self, bytes_max: u64) {
        self.bytes_max = bytes_max;
        self.evict();
    }

    /// Bytes that it holds, those among them that sequences hold as well.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn node(&self, id: NodeId) -> &Node {
        self.nodes[id.0].as_ref().expect("ids are handed out for nodes that are there")
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes[id.0].as_mut().expect("ids are handed out for nodes that are there")
    }

    fn child(&self, scope: Scope, parent: Option<NodeId>, tokens: &[Token]) -> Option<NodeId> {
        let is = |node: &Option<Node>| {
            node.as_ref().is_some_and(|n| n.scope == scope && n.parent == parent && *n.tokens == *tokens)
        };
        self.nodes.iter().position(is).map(NodeId)
    }

    /// The nodes of `tokens`' beginning, as far as they are there.
    fn path(&self, scope: Scope, tokens: &[Token]) -> Vec<NodeId> {
        let mut path = Vec::new();
        for block in tokens.chunks_exact(ATTN_BLOCK) {
            let Some(id) = self.child(scope, path.last().copied(), block) else { break };
            path.push(id);
        }
        path
    }

    /// The longest beginning of `tokens`, not all of them, that a sequence can go on from that may know `scopes`, and its
    /// last block, which stays until it is [`Self::unpin`]ned.
    pub(super) fn find(
        &mut self,
        scopes: &[Scope],
        tokens: &[Token],
        paging: &Paging,
    ) -> Option<(NodeId, Vec<Block>)> {
        // Logits are wanted of the last token, so that one is always computed.
        let tokens = &tokens[..tokens.len().saturating_sub(1)];
        let paths = scopes.iter().map(|scope| {
            let mut path = self.path(*scope, tokens);
            let blocks: Vec<&Block> = path.iter().map(|id| &self.node(*id).block).collect();
            path.truncate(paging.resumable(&blocks));
            path
        });
        let path = paths.max_by_key(Vec::len)?;
        let last = *path.last()?;
        self.touch(&path);
        self.node_mut(last).n_pins += 1;
        Some((last, path.iter().map(|id| self.node(*id).block.clone()).collect()))
    }

    /// A sequence that began with the node has ended.
    pub(super) fn unpin(&mut self, id: NodeId) {
        self.node_mut(id).n_pins -= 1;
        self.evict();
    }

    fn touch(&mut self, path: &[NodeId]) {
        for id in path {
            self.clock += 1;
            self.node_mut(*id).used = self.clock;
        }
    }

    /// Keeps the whole blocks of `tokens`, of which `share` gives the `i`-th, where there is room.
    pub(super) fn insert(&mut self, scope: Scope, tokens: &[Token], share: impl Fn(usize) -> Option<Block>) {
        let mut path = self.path(scope, tokens);
        // States come to be known where a step ends at the end of a block.
        if let Some(&last) = path.last()
            && path.len() * ATTN_BLOCK + ATTN_BLOCK > tokens.len()
            && let Some(block) = share(path.len() - 1)
            && block.bytes() > self.node(last).bytes
        {
            self.bytes += block.bytes() - self.node(last).bytes;
            let node = self.node_mut(last);
            (node.bytes, node.block) = (block.bytes(), block);
        }
        for (i, own) in tokens.chunks_exact(ATTN_BLOCK).enumerate().skip(path.len()) {
            let Some(block) = share(i) else { break };
            let parent = path.last().copied();
            let bytes = block.bytes();
            let node =
                Node { scope, parent, tokens: own.into(), block, bytes, n_children: 0, n_pins: 0, used: 0 };
            let free = self.nodes.iter().position(Option::is_none);
            let at = free.unwrap_or_else(|| {
                self.nodes.push(None);
                self.nodes.len() - 1
            });
            self.nodes[at] = Some(node);
            self.bytes += bytes;
            if let Some(parent) = parent {
                self.node_mut(parent).n_children += 1;
            }
            path.push(NodeId(at));
        }
        self.touch(&path);
        self.evict();
    }

    /// Gives up what is over the budget.
    fn evict(&mut self) {
        self.shrink(self.bytes_max);
    }

    /// Gives up what is over `bytes_max` for once, as far as nobody begins with it.
    pub(super) fn shrink(&mut self, bytes_max: u64) {
        while self.bytes > bytes_max {
            let leaves = self.nodes.iter().enumerate().filter_map(|(i, n)| Some((i, n.as_ref()?)));
            let free = leaves.filter(|(_, n)| n.n_children == 0 && n.n_pins == 0);
            let Some(i) = free.min_by_key(|(_, n)| n.used).map(|(i, _)| i) else { return };
            let Some(node) = self.nodes[i].take() else { return };
            self.bytes -= node.bytes;
            if let Some(parent) = node.parent {
                self.node_mut(parent).n_children -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{Budget, CacheShape, Kv, KvType, Layout, StateShape};

    fn paging(states: bool) -> Arc<Paging> {
        let caches = vec![CacheShape { n_head_kv: 1, head_dim: 8, window: None }];
        let states = if states { vec![StateShape { conv: 4, heads: 1, state: 4 }] } else { Vec::new() };
        Arc::new(Paging::new(&Layout { caches, states }, KvType::F16))
    }

    fn tokens(n: usize, salt: u32) -> Vec<Token> {
        (0..n as u32).map(|i| Token(1_000 * salt + i)).collect()
    }

    /// A sequence that read `n` tokens in steps of `step`.
    fn read(
        cache: &mut PrefixCache,
        paging: &Arc<Paging>,
        scope: Scope,
        tokens: &[Token],
        step: usize,
    ) -> Kv {
        let mut kv = Kv::new(paging, &Budget::new(u64::MAX), 4_096, 128).unwrap();
        for i in (0..tokens.len()).step_by(step) {
            let n = step.min(tokens.len() - i);
            kv.reserve(n).unwrap();
            kv.advance_for_test(kv.len() + n);
            cache.insert(scope, &tokens[..i + n], |block| kv.share(block));
        }
        kv
    }

    #[test]
    fn beginnings_are_found_by_those_who_may() {
        let paging = paging(false);
        let mut cache = PrefixCache::new(u64::MAX);
        let mut text = tokens(200, 1);
        drop(read(&mut cache, &paging, Scope::Uid(7), &text, 100));
        assert_eq!(cache.bytes, 3 * paging.page_bytes());
        let found = |cache: &mut PrefixCache, uid, tokens: &[Token]| {
            cache.find(&[Scope::Uid(uid), Scope::Public], tokens, &paging).map(|(id, blocks)| {
                cache.unpin(id);
                blocks.len()
            })
        };
        assert_eq!(found(&mut cache, 7, &text), Some(3));
        assert_eq!(found(&mut cache, 7, &text[..192]), Some(2), "one token is always computed");
        assert_eq!(found(&mut cache, 7, &text[..64]), None);
        assert_eq!(found(&mut cache, 8, &text), None, "another's");
        assert_eq!(found(&mut cache, 0, &text), None, "root's neither");
        text[130] = Token(5);
        assert_eq!(found(&mut cache, 7, &text), Some(2));
        drop(read(&mut cache, &paging, Scope::Uid(7), &text, 100));
        assert_eq!(cache.bytes, 4 * paging.page_bytes(), "what is there already is not kept twice");
        drop(read(&mut cache, &paging, Scope::Public, &tokens(64, 2), 64));
        assert_eq!(found(&mut cache, 8, &tokens(65, 2)), Some(1));
    }

    #[test]
    fn what_was_used_longest_ago_goes() {
        let paging = paging(false);
        let mut cache = PrefixCache::new(6 * paging.page_bytes());
        drop(read(&mut cache, &paging, Scope::Uid(1), &tokens(128, 1), 64));
        drop(read(&mut cache, &paging, Scope::Uid(1), &tokens(128, 2), 64));
        let (pinned, _) = cache.find(&[Scope::Uid(1)], &tokens(129, 1), &paging).unwrap();
        drop(read(&mut cache, &paging, Scope::Uid(2), &tokens(256, 3), 64));
        assert_eq!(cache.bytes, 6 * paging.page_bytes());
        assert!(
            cache.find(&[Scope::Uid(1)], &tokens(129, 2), &paging).is_none(),
            "its leaf went first, then the rest"
        );
        assert!(cache.find(&[Scope::Uid(2)], &tokens(257, 3), &paging).is_some());
        cache.shrink(0);
        let (again, blocks) = cache.find(&[Scope::Uid(1)], &tokens(129, 1), &paging).unwrap();
        assert_eq!((again, blocks.len()), (pinned, 2), "who begins with it keeps it");
        cache.unpin(pinned);
        cache.unpin(pinned);
        cache.shrink(0);
        assert!(cache.find(&[Scope::Uid(1)], &tokens(129, 1), &paging).is_none());
    }

    #[test]
    fn recurrent_layers_go_on_where_a_step_ended() {
        let paging = paging(true);
        let mut cache = PrefixCache::new(u64::MAX);
        let text = tokens(320, 1);
        drop(read(&mut cache, &paging, Scope::Uid(1), &text, 128));
        let n = |cache: &mut PrefixCache, n: usize| {
            cache.find(&[Scope::Uid(1)], &text[..n], &paging).map(|(_, b)| b.len())
        };
        assert_eq!((n(&mut cache, 320), n(&mut cache, 256), n(&mut cache, 129)), (Some(4), Some(2), Some(2)));
        // Another one stops in between: now that place is known too.
        drop(read(&mut cache, &paging, Scope::Uid(1), &text[..192], 64));
        assert_eq!(n(&mut cache, 256), Some(3));
    }
}
