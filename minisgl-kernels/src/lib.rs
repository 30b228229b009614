//! The op set of the mini-sgl inference engine.
//!
//! One trait, [`Backend`], names every operation that a decoder step needs. [`cpu::Cpu`] implements it with
//! SIMD on all cores, `cuda::Cuda` (feature `cuda`) with hand-written kernels, and [`null::Null`] checks shapes
//! and returns deterministic fake tokens so that a scheduler can be driven without arithmetic.
//!
//! The crate knows nothing of requests, models or schedulers. It is the only crate of the workspace that
//! contains `unsafe` code; every block says which checks make it sound.

mod attn_kernel;
mod backend;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod dtype;
mod error;
mod mapped;
pub mod null;
pub mod philox;
mod step;
mod tensor;

pub use attn_kernel::AttnKernel;
pub use backend::{
    Activation, AttnSpec, Backend, KvLayer, MAX_LOGPROBS, Memory, SampleBuf, Samples, SeqState,
};
pub use dtype::DType;
pub use error::{KernelError, Result};
pub use mapped::MappedFile;
pub use step::{CountReset, PADDING, PageUpdate, SampleParams, StepInputs};
pub use tensor::Tensor;
