//! The oracle of mini-sgl: every op of a decoder again, as slow, obvious scalar Rust.
//!
//! Inputs are slices of f32 or f64 ([`Real`]), row-major; results are `Vec<f64>`. Every op takes a [`Precision`]:
//! [`Precision::F64`] is the exact answer, the others show what a naive implementation loses that stores each
//! intermediate in bf16, f16 or f32 and accumulates in f32. Tolerances of the real kernels are derived from the
//! distance between the two.
//!
//! One file an op, with the stem that the op has everywhere else in the workspace; [`Decoder`] puts them
//! together as a whole model by full recompute, with no paging, no batching and no cache.
//!
//! Shapes are checked by assertion: a wrong shape here is a mistake in a test.
#![forbid(unsafe_code)]

mod act_mul;
mod add_rms_norm;
mod attention;
mod decoder;
mod embedding;
mod gather_samples;
mod linear;
mod moe_routing;
mod philox;
mod precision;
mod rms_norm;
mod rope;
mod rope_store_kv;
mod sample;
mod softmax;
mod weights;

pub use act_mul::{Activation, act_mul, activation};
pub use add_rms_norm::add_rms_norm;
pub use attention::{AttnSpec, attention, paged_attention};
pub use decoder::{Decoder, DecoderSpec, argmax};
pub use embedding::embedding;
pub use gather_samples::gather_samples;
pub use linear::linear;
pub use moe_routing::{Route, moe_routing};
pub use philox::{gumbel, philox4x32_10};
pub use precision::{Precision, Real, to_f64};
pub use rms_norm::rms_norm;
pub use rope::{RopeScaling, RopeSpec};
pub use rope_store_kv::{KvPages, norm_rope, rotate, store_kv};
pub use sample::{SampleParams, distribution, draw, kept, penalized_logits, scores};
pub use softmax::{log_softmax, softmax};
pub use weights::{LayerWeights, Weights};
