//! Continuous batching over a paged KV cache.
//!
//! Two halves that meet in `engine.rs` alone. The scheduler half (`request`, `batch`, `scheduler`, `kv`) holds
//! integers: sequences, pages, the prefix tree. The device half (`model`, `runner`) is generic over
//! [`minisgl_kernels::Backend`] and never changes a sequence.
#![forbid(unsafe_code)]

pub mod batch;
pub mod config;
mod engine;
mod error;
mod footprint;
pub mod kv;
pub mod mailbox;
pub mod model;
mod queue;
pub mod request;
mod runner;
pub mod scheduler;
mod sequence;
mod stats;
mod token_list;
mod warm_up;
mod worker;

pub use engine::{Engine, EngineInfo, LoadProgress, OnProgress, Submission};
pub use error::{EngineError, Result};
pub use minisgl_kernels::{Backend, DType, KernelError, MAX_LOGPROBS};
pub use stats::{Stats, StepRecord, StepTimes};
