//! The engine: the one place that sees both the scheduler and the device.

use std::time::Duration;

use minisgl_kernels::DType;

use crate::config::EngineConfig;
use crate::error::Result;
use crate::request::{Request, RequestId, Sink};

/// A running engine. Dropping it stops the thread and frees everything.
#[derive(Debug)]
pub struct Engine {
    info: EngineInfo,
}

/// What a started engine is.
#[derive(Clone, Debug)]
pub struct EngineInfo {
    /// `architectures[0]` of the model.
    pub architecture: String,
    /// Device name for people.
    pub device: String,
    /// Dtype of weights, activations and KV.
    pub dtype: DType,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Longest sequence, prompt and output together.
    pub max_seq_len: usize,
    /// Ids that end an output.
    pub eos_token_ids: Vec<u32>,
    /// KV pages.
    pub num_pages: usize,
    /// Tokens in a page.
    pub page_size: usize,
    /// KV bytes of one token.
    pub kv_bytes_per_token: usize,
    /// Bytes of weights on the device.
    pub weight_bytes: usize,
    /// Time from the start to ready.
    pub load_time: Duration,
}

/// How far loading is.
#[derive(Clone, Copy, Debug)]
pub struct LoadProgress {
    /// Bytes of weights on the device.
    pub loaded_bytes: usize,
    /// Bytes of weights in all.
    pub total_bytes: usize,
}

/// One prompt and the receivers of its completions: as many completions as sinks.
pub struct Submission {
    /// The prompt and its params.
    pub request: Request,
    /// One sink a completion, at least one.
    pub sinks: Vec<Box<dyn Sink>>,
}

/// Counters of a running engine.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Sequences that hold a page-table row.
    pub num_running: usize,
    /// Sequences that wait for one.
    pub num_waiting: usize,
    /// KV pages that running sequences hold.
    pub pages_used: usize,
    /// KV pages that only the prefix cache holds.
    pub pages_cached: usize,
    /// KV pages that nobody holds.
    pub pages_free: usize,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_lookup_tokens: u64,
    /// Prompt tokens found there.
    pub prefix_hit_tokens: u64,
    /// Sequences put back to waiting because pages ran out.
    pub preemptions: u64,
    /// Steps launched.
    pub steps: u64,
    /// Prompt tokens computed.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub output_tokens: u64,
    /// Host time in planning steps.
    pub schedule_time: Duration,
    /// Host time in launching steps; on the CPU this is the computation itself.
    pub launch_time: Duration,
    /// Host time in waiting for results.
    pub wait_time: Duration,
    /// Host time in taking results in and handing tokens out.
    pub commit_time: Duration,
}

impl Engine {
    /// Loads the model and starts the engine's thread. `progress` is called while weights load.
    ///
    /// # Errors
    /// A setting that cannot be met, a model directory that cannot be loaded, a device that cannot be used.
    pub fn start(
        _config: EngineConfig,
        _progress: Option<Box<dyn FnMut(LoadProgress) + Send>>,
    ) -> Result<Self> {
        Err(crate::EngineError::Dead("not built yet".into()))
    }

    /// What this engine is.
    pub fn info(&self) -> &EngineInfo {
        &self.info
    }

    /// Checks a request without running it.
    ///
    /// # Errors
    /// Names the field, its value and what is allowed.
    pub fn validate(&self, _request: &Request) -> Result<()> {
        Ok(())
    }

    /// Queues requests in order; returns one id a sink, in order. Every request is validated first; if one is
    /// invalid none is queued.
    ///
    /// # Errors
    /// The first invalid request's error, or that the engine has stopped.
    pub fn submit(&self, _submissions: Vec<Submission>) -> Result<Vec<RequestId>> {
        Ok(Vec::new())
    }

    /// Ends a request soon; its sink receives `Finished` with reason `Abort`, unless it ended before.
    pub fn abort(&self, _id: RequestId) {}

    /// Counters as of the last step.
    pub fn stats(&self) -> Stats {
        Stats::default()
    }
}
