//! Models: what a directory holds, how it is loaded, and the decoder that all families share.

mod checkpoint;
mod decoder;
mod family;
mod fields;
mod rope;
mod spec;
mod weights;

pub use checkpoint::{Checkpoint, TensorEntry};
pub(crate) use decoder::{Decoder, DecoderSizes};
pub use family::{FAMILIES, Family};
pub use rope::{RopeScaling, RopeSpec};
pub use spec::ModelSpec;
pub(crate) use weights::{WeightSource, Weights};
