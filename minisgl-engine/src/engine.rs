//! The engine: its door for callers, and how it starts.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use minisgl_kernels::cpu::{Cpu, CpuOptions};
use minisgl_kernels::{Backend, DType, KernelError};

use crate::config::{AttentionBackend, Device, EngineConfig};
use crate::model::{Checkpoint, ModelSpec, WeightSource};
use crate::queue::Queue;
use crate::request::{Event, Request, RequestId, Sink};
use crate::runner::{Runner, RunnerConfig};
use crate::scheduler::{Scheduler, SchedulerConfig};
use crate::stats::{Stats, StepLog, StepRecord};
use crate::worker::Worker;
use crate::{EngineError, Result};

/// Memory of a device from which on the activations of longer prompt steps do not matter, up to 2 GB for a model of 8 billion
/// parameters.
const LARGE_DEVICE_BYTES: usize = 64 << 30;

/// A running engine. Dropping it stops the thread and frees everything.
pub struct Engine {
    info: EngineInfo,
    limits: SchedulerConfig,
    next_id: AtomicU64,
    shared: Arc<Shared>,
    /// `None` only while the engine is dropped.
    thread: Option<JoinHandle<()>>,
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
    /// Sequences in flight at most.
    pub max_running_req: usize,
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
    /// Time that the weights took from the checkpoint to the device.
    pub weights_time: Duration,
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

/// Called while weights load.
pub type OnProgress = Box<dyn FnMut(LoadProgress) + Send>;

/// One prompt and the receivers of its completions: as many completions as sinks.
pub struct Submission {
    /// The prompt and its params.
    pub request: Request,
    /// One sink a completion, at least one.
    pub sinks: Vec<Box<dyn Sink>>,
}

/// What callers say to the engine's thread.
pub(crate) enum Command {
    Submit(Vec<Queued>),
    Abort(RequestId),
}

/// A submission with its names.
pub(crate) struct Queued {
    pub(crate) request: Request,
    pub(crate) ids: Vec<RequestId>,
    pub(crate) sinks: Vec<Box<dyn Sink>>,
    pub(crate) submitted: Instant,
}

/// What callers and the engine's thread share.
pub(crate) struct Shared {
    /// Closed with the reason once the engine has stopped.
    pub(crate) commands: Queue<Command, EngineError>,
    observed: Mutex<Observed>,
}

/// What callers can ask of the engine's thread.
#[derive(Default)]
struct Observed {
    stats: Stats,
    log: StepLog,
}

impl Shared {
    fn observed(&self) -> MutexGuard<'_, Observed> {
        self.observed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of one more turn of the loop.
    pub(crate) fn observe(&self, stats: &Stats, record: StepRecord) {
        let mut observed = self.observed();
        observed.stats.clone_from(stats);
        observed.log.push(record);
    }

    /// Refuses commands from now on, and tells those that nobody took. Who comes later is told that the engine is
    /// dead, and of what.
    pub(crate) fn close(&self, reason: &EngineError) {
        let dead = match reason {
            EngineError::Dead(_) => reason.clone(),
            other => EngineError::Dead(other.to_string()),
        };
        for command in self.commands.close(dead) {
            if let Command::Submit(submissions) = command {
                submissions.into_iter().flat_map(|queued| queued.sinks).for_each(|sink| fail(sink, reason));
            }
        }
    }
}

/// Sends a request's last event while the engine stops. A sink that panics must not keep the others waiting.
pub(crate) fn fail(mut sink: Box<dyn Sink>, reason: &EngineError) {
    let body = std::panic::AssertUnwindSafe(move || {
        sink.send(Event::Failed(reason.clone()));
        sink.flush();
    });
    if std::panic::catch_unwind(body).is_err() {
        tracing::error!("a sink panicked while the engine stopped");
    }
}

impl Engine {
    /// Loads the model and starts the engine's thread. `progress` is called while weights load.
    ///
    /// # Errors
    /// A setting that cannot be met, a model directory that cannot be loaded, a device that cannot be used.
    pub fn start(config: EngineConfig, progress: Option<OnProgress>) -> Result<Self> {
        match config.device {
            Device::Cpu => Self::start_cpu(config, progress),
            #[cfg(feature = "cuda")]
            Device::Auto if minisgl_kernels::cuda::num_devices() > 0 => Self::start_cuda(config, 0, progress),
            Device::Auto => Self::start_cpu(config, progress),
            #[cfg(feature = "cuda")]
            Device::Cuda(ordinal) => Self::start_cuda(config, ordinal, progress),
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(_) => Err(EngineError::InvalidConfig(format!(
                "device {} was asked for, but this program was built without the feature 'cuda'; build it with \
                 --features cuda, or use device cpu",
                config.device
            ))),
        }
    }

    fn start_cpu(config: EngineConfig, progress: Option<OnProgress>) -> Result<Self> {
        if config.attention_backend != AttentionBackend::default() {
            return Err(EngineError::InvalidConfig(format!(
                "attention_backend '{}' needs a CUDA device; on the CPU only 'auto' runs",
                config.attention_backend
            )));
        }
        let options = CpuOptions { threads: config.threads, ..CpuOptions::default() };
        Self::start_with(config, progress, move || Cpu::new(options))
    }

    #[cfg(feature = "cuda")]
    fn start_cuda(config: EngineConfig, ordinal: usize, progress: Option<OnProgress>) -> Result<Self> {
        use minisgl_kernels::cuda::{Cuda, CudaOptions, LinearKernel};

        let AttentionBackend { prefill, decode } = config.attention_backend;
        let linear = if config.own_linear_kernels { LinearKernel::Auto } else { LinearKernel::Cublas };
        let options = CudaOptions { ordinal, prefill, decode, linear, ..CudaOptions::default() };
        Self::start_with(config, progress, move || Cuda::open(options))
    }

    /// Starts on a backend of the caller's making; `make` runs on the engine's thread.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with<B: Backend>(
        config: EngineConfig,
        progress: Option<OnProgress>,
        make: impl FnOnce() -> Result<B, KernelError> + Send + 'static,
    ) -> Result<Self> {
        config.check()?;
        let spec = ModelSpec::read(&config.model_path)?;
        let checkpoint = match config.use_dummy_weight {
            true => None,
            false => Some(Checkpoint::open(&config.model_path)?),
        };
        let (ready_tx, ready) = mpsc::channel();
        let shared = Arc::new(Shared { commands: Queue::new(), observed: Mutex::default() });
        let seen = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("minisgl-engine".into())
            .spawn(move || {
                let start = Start { config, spec, checkpoint, progress };
                match start.on_thread(make, seen) {
                    Ok((worker, info, limits)) => {
                        if ready_tx.send(Ok((info, limits))).is_ok() {
                            worker.run();
                        }
                    }
                    // The caller waits for exactly this message, or is gone.
                    Err(error) => drop(ready_tx.send(Err(error))),
                }
            })
            .map_err(|error| EngineError::Dead(format!("its thread could not be started: {error}")))?;
        let (info, limits) = ready.recv().unwrap_or_else(|_| {
            Err(EngineError::Dead("its thread panicked while the model was loaded".into()))
        })?;
        let next_id = AtomicU64::new(0);
        Ok(Self { info, limits, next_id, shared, thread: Some(thread) })
    }

    /// What this engine is.
    pub fn info(&self) -> &EngineInfo {
        &self.info
    }

    /// Checks a request without running it.
    ///
    /// # Errors
    /// Names the field, its value and what is allowed.
    pub fn validate(&self, request: &Request) -> Result<()> {
        self.limits.validate(request)
    }

    /// Queues requests in order; returns one id a sink, in order. Every request is validated first; if one is
    /// invalid none is queued.
    ///
    /// # Errors
    /// The first invalid request's error, or that the engine has stopped.
    pub fn submit(&self, submissions: Vec<Submission>) -> Result<Vec<RequestId>> {
        for submission in &submissions {
            self.validate(&submission.request)?;
            if submission.sinks.is_empty() {
                return Err(EngineError::InvalidRequest("n is 0, expected at least one completion".into()));
            }
        }
        let submitted = Instant::now();
        let mut all_ids = Vec::new();
        let queue = |Submission { request, sinks }| {
            let first = self.next_id.fetch_add(sinks.len() as u64, Ordering::Relaxed);
            let ids: Vec<_> = (first..first + sinks.len() as u64).map(RequestId).collect();
            all_ids.extend_from_slice(&ids);
            Queued { request, ids, sinks, submitted }
        };
        let queued = submissions.into_iter().map(queue).collect();
        self.shared.commands.push(Command::Submit(queued))?;
        Ok(all_ids)
    }

    /// Ends a request soon; its sink receives `Finished` with reason `Abort`, unless it ended before.
    pub fn abort(&self, id: RequestId) {
        // A stopped engine has ended every request already.
        drop(self.shared.commands.push(Command::Abort(id)));
    }

    /// Counters as of the last step.
    pub fn stats(&self) -> Stats {
        self.shared.observed().stats.clone()
    }

    /// The latest turns of its loop, at most 1024, oldest first.
    pub fn recent_steps(&self) -> Vec<StepRecord> {
        self.shared.observed().log.to_vec()
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("info", &self.info).finish_non_exhaustive()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.close(&EngineError::Dead("it was shut down".into()));
        if let Some(thread) = self.thread.take() {
            // A panic on that thread was caught and reported to every caller.
            drop(thread.join());
        }
    }
}

/// What the engine's thread starts from.
struct Start {
    config: EngineConfig,
    spec: ModelSpec,
    checkpoint: Option<Checkpoint>,
    progress: Option<OnProgress>,
}

impl Start {
    fn on_thread<B: Backend>(
        self,
        make: impl FnOnce() -> Result<B, KernelError>,
        shared: Arc<Shared>,
    ) -> Result<(Worker<B>, EngineInfo, SchedulerConfig)> {
        let started = Instant::now();
        let Self { config, spec, checkpoint, progress } = self;
        let backend = make()?;
        let asynchronous = backend.has_graphs();
        let dtype = config
            .dtype
            .or(spec.dtype)
            .or_else(|| checkpoint.as_ref().and_then(Checkpoint::dtype))
            .unwrap_or(DType::BF16);
        let max_seq_len = config.max_seq_len_override.unwrap_or(spec.max_position);
        let is_large = asynchronous && backend.memory().total_bytes >= LARGE_DEVICE_BYTES;
        let max_extend_tokens = config.max_extend_tokens.unwrap_or(if is_large { 16_384 } else { 8192 });
        let source = match &checkpoint {
            Some(checkpoint) => WeightSource::Checkpoint(checkpoint),
            None => WeightSource::Dummy { seed: config.seed },
        };
        let runner_config = RunnerConfig {
            dtype,
            max_running_req: config.max_running_req,
            max_extend_tokens,
            max_seq_len,
            page_size: config.page_size,
            memory_ratio: config.memory_ratio.unwrap_or(if asynchronous { 0.9 } else { 0.5 }),
            num_page_override: config.num_page_override,
            graph_sizes: if asynchronous { config.graph_sizes() } else { Vec::new() },
        };
        let mut progress = progress.unwrap_or_else(|| Box::new(|_| {}));
        let runner = Runner::new(backend, &spec, &source, &runner_config, &mut *progress)?;
        let limits = SchedulerConfig {
            num_pages: runner.num_pages(),
            page_size: config.page_size,
            max_running_req: config.max_running_req,
            max_extend_tokens,
            max_seq_len,
            vocab: spec.vocab,
            eos_token_ids: spec.eos_token_ids.clone(),
            cache_type: config.cache_type,
        };
        let info = EngineInfo {
            architecture: spec.architecture.clone(),
            device: runner.device_name(),
            dtype,
            vocab: spec.vocab,
            max_seq_len: max_seq_len.min(runner.num_pages() * config.page_size),
            max_running_req: config.max_running_req,
            eos_token_ids: spec.eos_token_ids.clone(),
            num_pages: runner.num_pages(),
            page_size: config.page_size,
            kv_bytes_per_token: spec.kv_bytes_per_token(dtype),
            weight_bytes: spec.weight_bytes(dtype),
            weights_time: runner.weights_time(),
            load_time: started.elapsed(),
        };
        let scheduler = Scheduler::new(limits.clone())?;
        let overlap = config.overlap.unwrap_or(asynchronous);
        tracing::info!(device = info.device, num_pages = info.num_pages, %dtype, "engine ready");
        Ok((Worker::new(runner, scheduler, shared, overlap), info, limits))
    }
}
