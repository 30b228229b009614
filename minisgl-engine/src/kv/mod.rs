//! Who owns which KV page: the pool of pages and the prefix cache over them. Integers only; the storage itself
//! is the runner's.

mod page_pool;
mod radix;
#[cfg(test)]
mod radix_tests;

use std::hash::{BuildHasherDefault, Hasher};

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

/// For tables whose keys are hashes already.
pub(crate) type KeyIsHash = BuildHasherDefault<Unchanged>;

/// The key as its own hash.
#[derive(Debug, Default)]
pub(crate) struct Unchanged(u64);

impl Hasher for Unchanged {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 ^= u64::from_le_bytes(word);
        }
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}
