//! What the scheduler's tests share: random numbers, a checked device, and the engine's loop around both.
#![allow(dead_code, unreachable_pub, reason = "each test binary is a crate that uses its own part")]

use std::collections::{HashMap, VecDeque};

use minisgl_engine::batch::Batch;
use minisgl_engine::config::CacheType;
use minisgl_engine::request::{FinishReason, Request, RequestId, RequestParams};
use minisgl_engine::scheduler::{Scheduler, SchedulerConfig, Update, completion_seed};
use minisgl_kernels::null::{Null, NullOptions};
use minisgl_kernels::{
    AttnSpec, Backend, DType, KvLayer, SampleBuf, SampleParams, Samples, SeqState, StepInputs, Tensor,
};

/// SplitMix64.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    pub fn tokens(&mut self, len: usize, vocab: usize) -> Vec<u32> {
        (0..len).map(|_| self.below(vocab) as u32).collect()
    }
}

/// The seeds of a test: those of the environment variable `SEED` alone, or `num` fresh ones.
pub fn seeds(num: u64) -> Vec<u64> {
    if let Some(seed) = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()) {
        return vec![seed];
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock after 1970");
    let base = now.as_nanos() as u64 >> 10;
    (0..num).map(|i| base.wrapping_add(i)).collect()
}

/// Runs `test` for each seed; says which one failed and how to run it alone.
pub fn for_seeds(num: u64, test: impl Fn(u64) + std::panic::RefUnwindSafe) {
    for seed in seeds(num) {
        if let Err(panic) = std::panic::catch_unwind(|| test(seed)) {
            eprintln!("failed with SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

/// A roomy scheduler; tests change what they are about.
pub fn config() -> SchedulerConfig {
    SchedulerConfig {
        num_pages: 256,
        page_size: 4,
        max_running_req: 8,
        max_extend_tokens: 64,
        max_seq_len: 200,
        vocab: 1000,
        eos_token_ids: vec![],
        cache_type: CacheType::Radix,
    }
}

pub fn request(token_ids: &[u32], max_tokens: usize) -> Request {
    Request {
        token_ids: token_ids.to_vec(),
        params: RequestParams { max_tokens, ..RequestParams::default() },
    }
}

/// The output that `request` must have, and why it ends: one token after the other, from its history alone.
pub fn oracle(request: &Request, completion: u64, config: &SchedulerConfig) -> (Vec<u32>, FinishReason) {
    let params = &request.params;
    let options = NullOptions { vocab: config.vocab, checked: true };
    let room = config.max_seq_len.min(config.num_pages * config.page_size) - request.token_ids.len();
    let mut history = request.token_ids.clone();
    loop {
        let sample = SampleParams {
            seed: completion_seed(params.seed, completion),
            temperature: params.temperature,
            top_k: params.top_k,
            ..SampleParams::greedy(0, history.len() as u32)
        };
        let token = options.next_token(&history, &sample);
        let output = &history[request.token_ids.len()..];
        let is_eos = !params.ignore_eos && config.eos_token_ids.contains(&token);
        if is_eos || params.stop_token_ids.contains(&token) {
            return (output.to_vec(), FinishReason::Stop);
        }
        history.push(token);
        let output = &history[request.token_ids.len()..];
        if output.len() == params.max_tokens.min(room) {
            return (output.to_vec(), FinishReason::Length);
        }
    }
}

const SPEC: AttnSpec =
    AttnSpec { num_heads: 1, num_kv_heads: 1, head_dim: 4, scale: 0.5, window: None, page_size: 0 };

/// The null backend in checked mode, with one layer.
pub struct Device {
    backend: Null,
    spec: AttnSpec,
    state: SeqState<Vec<u8>>,
    kv: Vec<KvLayer<Vec<u8>>>,
    inputs: <Null as Backend>::Inputs,
    plan: <Null as Backend>::AttnPlan,
    samples: SampleBuf<Vec<u8>>,
    table: Tensor<Vec<u8>>,
    rope: Tensor<Vec<u8>>,
    x: Tensor<Vec<u8>>,
    qkv: Tensor<Vec<u8>>,
    out: Tensor<Vec<u8>>,
    logits: Tensor<Vec<u8>>,
}

impl Device {
    pub fn new(config: &SchedulerConfig, checked: bool) -> Self {
        let mut b = Null::new(NullOptions { vocab: config.vocab, checked });
        let (tokens, rows) = (config.max_step_tokens(), config.max_running_req);
        let slots = config.num_pages * config.page_size;
        let spec = AttnSpec { page_size: config.page_size, ..SPEC };
        let mut tensor = |rows, cols| b.tensor("a tensor", DType::BF16, rows, cols).expect("memory");
        let kv = vec![KvLayer { k: tensor(slots, 4), v: tensor(slots, 4), page_size: config.page_size }];
        let (table, rope) = (tensor(config.vocab, 8), tensor(config.max_seq_len, 4));
        let (x, qkv, out) = (tensor(tokens, 8), tensor(tokens, 12), tensor(tokens, 4));
        let logits = tensor(rows, config.vocab);
        Self {
            spec,
            state: b.seq_state(rows, config.max_pages_per_seq(), config.vocab).expect("memory"),
            kv,
            inputs: b.inputs(tokens, rows, rows).expect("memory"),
            plan: b.attn_plan(&spec, tokens, rows).expect("a plan"),
            samples: b.sample_buf(rows).expect("memory"),
            table,
            rope,
            x,
            qkv,
            out,
            logits,
            backend: b,
        }
    }

    /// Runs one step.
    ///
    /// # Panics
    /// With what the backend found wrong.
    pub fn run(&mut self, step: &StepInputs) -> Samples {
        self.try_run(step).unwrap_or_else(|error| panic!("{error}\nin the step {step:?}"))
    }

    fn try_run(&mut self, step: &StepInputs) -> minisgl_kernels::Result<Samples> {
        let Self { backend: b, spec, state, kv, inputs, plan, .. } = self;
        b.begin_step(inputs, step, state, kv)?;
        b.plan_attention(plan, inputs, spec)?;
        b.embedding(&mut self.x, &self.table, inputs, state)?;
        b.rope_store_kv(&mut self.qkv, None, None, 1e-5, &self.rope, inputs, spec, &mut kv[0])?;
        b.attention(&mut self.out, &self.qkv, &kv[0], inputs, state, plan, spec)?;
        b.sample(&mut self.samples, &self.logits, inputs, state)?;
        let read_back = b.read_back(&self.samples, step.num_samples(), false)?;
        b.wait(read_back)
    }
}

/// What became of a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    pub tokens: Vec<u32>,
    pub end: Option<End>,
    pub num_cached_tokens: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum End {
    Finished(FinishReason),
    NotFinite(usize),
}

/// The engine's loop: a scheduler, a device, and the results on their way.
pub struct Driver {
    pub scheduler: Scheduler,
    pub device: Device,
    pub batch: Batch,
    pub updates: Vec<Update>,
    pub launched: VecDeque<Samples>,
    pub outcomes: HashMap<RequestId, Outcome>,
    next_id: u64,
}

impl Driver {
    pub fn new(config: SchedulerConfig) -> Self {
        Self {
            device: Device::new(&config, true),
            scheduler: Scheduler::new(config).expect("a valid config"),
            batch: Batch::default(),
            updates: Vec::new(),
            launched: VecDeque::new(),
            outcomes: HashMap::new(),
            next_id: 0,
        }
    }

    pub fn add(&mut self, request: Request) -> RequestId {
        self.add_n(request, 1)[0]
    }

    pub fn add_n(&mut self, request: Request, n: u64) -> Vec<RequestId> {
        let ids: Vec<RequestId> = (0..n).map(|i| RequestId(self.next_id + i)).collect();
        self.next_id += n;
        self.scheduler.add(request, &ids).expect("a valid request");
        self.outcomes.extend(ids.iter().map(|&id| (id, Outcome::default())));
        self.scheduler.check_invariants();
        ids
    }

    pub fn abort(&mut self, id: RequestId) {
        self.scheduler.abort(id, &mut self.updates);
        self.note_updates();
    }

    /// Plans a step and runs it on the device; its results stay on their way.
    pub fn launch(&mut self) -> bool {
        let is_planned = self.scheduler.schedule(&mut self.batch);
        self.scheduler.check_invariants();
        if is_planned {
            self.launched.push_back(self.device.run(&self.batch.inputs));
        } else {
            assert!(self.batch.inputs.page_updates.is_empty(), "a page of no step");
        }
        is_planned
    }

    /// Takes in the oldest step's results.
    pub fn commit(&mut self) -> bool {
        let Some(samples) = self.launched.pop_front() else { return false };
        self.commit_samples(&samples);
        true
    }

    pub fn commit_samples(&mut self, samples: &Samples) {
        self.scheduler.commit(samples, &mut self.updates);
        self.note_updates();
    }

    /// Once round the engine's loop; `false` when there was nothing to do.
    pub fn step(&mut self, overlap: bool) -> bool {
        let is_planned = self.launch();
        let limit = usize::from(overlap && is_planned);
        let is_committed = self.launched.len() > limit && self.commit();
        is_planned || is_committed
    }

    /// Goes round until every request has ended.
    pub fn run(&mut self, overlap: bool) {
        while self.step(overlap) {}
        assert!(self.scheduler.is_idle(), "nothing to do and not idle: {:?}", self.scheduler);
        let counters = self.scheduler.counters();
        assert_eq!(counters.pages_used, 0, "pages are left behind: {counters:?}");
    }

    pub fn outcome(&self, id: RequestId) -> &Outcome {
        &self.outcomes[&id]
    }

    /// Fails unless the request's output is what its own tokens lead to.
    pub fn expect_oracle(&self, id: RequestId, request: &Request, completion: u64) {
        let (tokens, reason) = oracle(request, completion, self.scheduler.config());
        let outcome = self.outcome(id);
        assert_eq!(outcome.tokens, tokens, "output of request {}", id.0);
        assert_eq!(outcome.end, Some(End::Finished(reason)), "end of request {}", id.0);
    }

    fn note_updates(&mut self) {
        self.scheduler.check_invariants();
        for update in self.updates.drain(..) {
            let (Update::Token { id, .. } | Update::Finished { id, .. } | Update::NotFinite { id, .. }) =
                update;
            let outcome = self.outcomes.get_mut(&id).expect("an update for a known request");
            assert_eq!(outcome.end, None, "an update after the end: {update:?}");
            match update {
                Update::Token { token, .. } => outcome.tokens.push(token),
                Update::Finished { reason, num_cached_tokens, .. } => {
                    outcome.end = Some(End::Finished(reason));
                    outcome.num_cached_tokens = num_cached_tokens;
                }
                Update::NotFinite { position, .. } => outcome.end = Some(End::NotFinite(position)),
            }
        }
    }
}
