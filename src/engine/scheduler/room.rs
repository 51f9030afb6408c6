//! Whether a sequence may have more pages. A state is safe if there is an order in which all can end, each with what is
//! free and what those before it leave (the banker's algorithm: Dijkstra, EWD 108, 1965); only safe states are entered, so
//! that whoever has begun can end, and nobody has to be thrown out for it.

use crate::base::limits::ATTN_BLOCK;

/// Pages of `n` positions.
pub(super) fn pages(n: usize) -> usize {
    n.div_ceil(ATTN_BLOCK)
}

/// What a sequence has and may still come to want.
#[derive(Clone, Copy, Debug)]
pub(super) struct Holder {
    /// Pages it has.
    pub held: usize,
    /// Pages it may come to have.
    pub most: usize,
}

/// Whether all of `holders` can end, of `n_pages` in all. Sorts them.
pub(super) fn safe(holders: &mut [Holder], n_pages: usize) -> bool {
    let held: usize = holders.iter().map(|h| h.held).sum();
    let Some(mut free) = n_pages.checked_sub(held) else { return false };
    // If any order will do, the one by what is missing does.
    holders.sort_unstable_by_key(|h| h.most.saturating_sub(h.held));
    holders.iter().all(|h| {
        let enough = h.most.saturating_sub(h.held) <= free;
        free += h.held;
        enough
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn safe_is_what_some_order_allows() {
        let holders = |of: &[(usize, usize)]| -> Vec<Holder> {
            of.iter().map(|&(held, most)| Holder { held, most }).collect()
        };
        assert!(safe(&mut [], 0));
        assert!(safe(&mut holders(&[(4, 9), (2, 4), (2, 7)]), 11));
        assert!(!safe(&mut holders(&[(4, 9), (2, 4), (2, 7)]), 10), "after the second, 4 are free");
        assert!(!safe(&mut holders(&[(6, 6), (6, 6)]), 10));
        assert_eq!([0, 1, 64, 65].map(pages), [0, 1, 1, 2]);
    }
}
