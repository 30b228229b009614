use minisgl_kernels::KernelError;

/// What a request, a model or the engine can fail with.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A request that cannot be run: names the field, its value and what is allowed.
    #[error("{0}")]
    InvalidRequest(String),
    /// A setting that cannot be met: names it, its value and what is allowed.
    #[error("{0}")]
    InvalidConfig(String),
    /// A request that needs more KV pages than the pool has.
    #[error(
        "the request needs {needed} KV pages of {page_size} tokens for its prompt and first token, the pool has \
         {available}: raise memory_ratio or num_page_override, or shorten the prompt"
    )]
    TooLarge {
        /// Pages that it needs at least.
        needed: usize,
        /// Pages in the pool.
        available: usize,
        /// Tokens in a page.
        page_size: usize,
    },
    /// A model directory that cannot be loaded: names file, tensor, what was expected and what was found.
    #[error("{0}")]
    Model(String),
    /// The model produced no finite logit.
    #[error("the model produced no finite logit at position {position}; check the weights and the dtype")]
    NotFinite {
        /// Position of the token that could not be sampled.
        position: usize,
    },
    /// An op or the device failed. The engine is dead after this.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The engine has stopped, and why.
    #[error("the engine has stopped: {0}")]
    Dead(String),
}

/// Result of anything in this crate.
pub type Result<T, E = EngineError> = std::result::Result<T, E>;
