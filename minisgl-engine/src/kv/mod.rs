//! Who owns which KV page: the pool of pages and the prefix cache over them. Integers only; the storage itself
//! is the runner's.

mod page_pool;
mod radix;
#[cfg(test)]
mod radix_tests;

pub use page_pool::PagePool;
pub use radix::{NodeId, RadixTree};

/// Continues a hash of a token sequence by `tokens`.
///
/// Quick rather than strong: whoever finds something by this hash compares the tokens too, or is merely slower
/// for a collision.
pub(crate) fn hash_tokens(prefix: u64, tokens: &[u32]) -> u64 {
    let mut hash = prefix;
    for &token in tokens {
        hash = (hash.rotate_left(5) ^ u64::from(token)).wrapping_mul(0x517C_C1B7_2722_0A95);
    }
    // The table of the tree uses low bits and high bits; multiplication alone leaves the low ones weak.
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0xD6E8_FEB8_6659_FD93);
    hash ^ (hash >> 32)
}
