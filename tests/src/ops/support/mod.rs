//! What the op cases share: random data, device memory with guard bands, tolerances, steps.

mod device;
mod rng;
mod scene;
mod strategy;
mod tolerance;

pub(crate) use crate::models::precision;
pub(crate) use device::{Guarded, Words, encode};
pub(crate) use rng::Rng;
pub(crate) use scene::{Scene, SeqShape};
pub(crate) use strategy::{dtype, one_of};
pub(crate) use tolerance::{Failure, bitwise, close, expect_err, same_bits};
