use std::sync::Arc;

use minisgl_engine::Engine;

use crate::template::ChatTemplate;
use crate::tokenizer::Tokenizer;

/// What [`LLM::from_parts`](crate::LLM::from_parts) puts together: an engine that runs, and what turns text into its
/// tokens and back.
///
/// [`LLM::builder`](crate::LLM::builder) makes all of it from a model's files. Who has a
/// [`Backend`](minisgl_engine::Backend) of their own starts it with [`Engine::start_with`].
pub struct LLMParts {
    /// The engine.
    pub engine: Engine,
    /// `None`: prompts are token ids, outputs have no text, stop strings are refused.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// `None`: conversations are refused.
    pub template: Option<ChatTemplate>,
    /// Base of the random numbers of requests that have no seed of their own.
    pub seed: u64,
    /// Whether progress is shown where standard error is a terminal.
    pub progress: bool,
}

impl LLMParts {
    /// An engine alone: no tokenizer, no template, seed 0, no progress shown.
    pub fn new(engine: Engine) -> Self {
        Self { engine, tokenizer: None, template: None, seed: 0, progress: false }
    }
}

impl std::fmt::Debug for LLMParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LLMParts").field("engine", &self.engine).finish_non_exhaustive()
    }
}
