//! Offline batch inference for large language models: text in, text out.
//!
//! [`LLM`] loads a model once and continues prompts in one continuously growing and shrinking batch.
//!
//! ```no_run
//! use minisgl_llm::{DType, LLM, SamplingParams};
//!
//! # fn main() -> Result<(), minisgl_llm::Error> {
//! let llm = LLM::builder("meta-llama/Llama-3.2-1B-Instruct").dtype(DType::BF16).build()?;
//! let outputs = llm.generate(
//!     ["What is the capital of France?", "Explain quantum computing in simple terms."],
//!     SamplingParams { temperature: 0.8, top_p: 0.95, max_tokens: 256, ..Default::default() },
//! )?;
//! for output in &outputs {
//!     println!("{}\nGenerated {} tokens", output.text, output.token_ids.len());
//! }
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod builder;
mod completion;
mod error;
mod flight;
mod generate_iter;
#[cfg(feature = "hub")]
pub mod hub;
mod llm;
mod model_path;
mod output;
mod params;
mod parts;
mod progress;
mod prompt;
mod stop;
mod stream;
mod template;
mod tokenizer;

pub use builder::LLMBuilder;
pub use error::{Error, InvalidPrompts, Problem, Result};
pub use generate_iter::GenerateIter;
pub use llm::LLM;
pub use minisgl_engine::config::{AttentionBackend, AttnKernel, CacheType, Device, EngineConfig};
pub use minisgl_engine::request::{FinishReason, Timings, TokenLogprobs};
pub use minisgl_engine::scheduler::Counters;
pub use minisgl_engine::{DType, Engine, EngineError, EngineInfo, MAX_LOGPROBS, Stats, StepTimes};
pub use output::Output;
pub use params::{ParamsList, SamplingParams, derive_seed};
pub use parts::LLMParts;
pub use prompt::{IntoPrompts, Message, Prompt};
pub use stream::{AbortHandle, Stream};
pub use template::{ChatOptions, ChatTemplate};
pub use tokenizer::{Detokenizer, Tokenizer};

/// The programs of the README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
