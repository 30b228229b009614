//! What the op cases share: random data, device memory with guard bands, tolerances, steps.

mod device;
mod rng;
mod scene;
mod strategy;
mod tolerance;

pub use device::{Guarded, Words, encode, precision};
pub use rng::Rng;
pub use scene::{Scene, SeqShape};
pub use strategy::{dtype, one_of};
pub use tolerance::{Failure, bitwise, close, expect_err, same_bits};
