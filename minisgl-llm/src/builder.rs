use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use minisgl_engine::config::EngineConfig;
use minisgl_engine::{DType, Engine};

use crate::error::Result;
use crate::llm::{Inner, LLM};
use crate::model_path::resolve;
use crate::progress;
use crate::template::ChatTemplate;
use crate::tokenizer::{Tokenizer, TokenizerConfig};
use crate::{AttentionBackend, CacheType, Device};

/// Settings of an [`LLM`], each with a default.
#[derive(Clone, Debug)]
#[must_use = "call build() to load the model"]
pub struct LLMBuilder {
    model: String,
    config: EngineConfig,
    tokenizer: Option<PathBuf>,
    chat_template: Option<String>,
    progress: bool,
    #[cfg(feature = "hub")]
    hub: Option<crate::hub::HubSettings>,
}

impl LLMBuilder {
    pub(crate) fn new(model: impl Into<String>) -> Self {
        Self {
            model: model.into(),
            config: EngineConfig::new(""),
            tokenizer: None,
            chat_template: None,
            progress: true,
            #[cfg(feature = "hub")]
            hub: None,
        }
    }

    /// Dtype of weights, activations and KV; `None` follows the checkpoint. Default bf16.
    pub fn dtype(mut self, dtype: impl Into<Option<DType>>) -> Self {
        self.config.dtype = dtype.into();
        self
    }

    /// Where to compute. Default: the first GPU if there is one, else the CPU.
    pub fn device(mut self, device: Device) -> Self {
        self.config.device = device;
        self
    }

    /// Sequences in flight. Default 256.
    pub fn max_running_req(mut self, num: usize) -> Self {
        self.config.max_running_req = num;
        self
    }

    /// Prefill token budget of a batch: the chunk size. Default 16,384 on a GPU of 64 GiB and more, else 8192.
    pub fn max_extend_tokens(mut self, num_tokens: usize) -> Self {
        self.config.max_extend_tokens = Some(num_tokens);
        self
    }

    /// Tokens in a KV page: a power of two from 1 to 256. Default 16.
    pub fn page_size(mut self, num_tokens: usize) -> Self {
        self.config.page_size = num_tokens;
        self
    }

    /// Kernel families for prefill and decode. Default: the fastest measured.
    pub fn attention_backend(mut self, backend: AttentionBackend) -> Self {
        self.config.attention_backend = backend;
        self
    }

    /// Decode batch sizes captured as CUDA graphs; an empty list turns graphs off.
    pub fn cuda_graph_bs(mut self, sizes: impl Into<Vec<usize>>) -> Self {
        self.config.cuda_graph_bs = Some(sizes.into());
        self
    }

    /// Largest decode batch captured as a CUDA graph where no list of sizes is given; 0 turns graphs off.
    pub fn cuda_graph_max_bs(mut self, size: usize) -> Self {
        self.config.cuda_graph_max_bs = Some(size);
        self
    }

    /// On CUDA, in 16 bits: own kernels for linear layers of up to 64 and of 512 and more tokens where they are faster. Without them a
    /// request's bits depend less on the size of its batch. Default: true.
    pub fn own_linear_kernels(mut self, are_used: bool) -> Self {
        self.config.own_linear_kernels = are_used;
        self
    }

    /// Share of the device's memory that the engine may hold in all, in (0, 1]; on the CPU it is a share of what
    /// is free at start. Default 0.9 on a GPU, 0.5 on the CPU.
    pub fn memory_ratio(mut self, ratio: f64) -> Self {
        self.config.memory_ratio = Some(ratio);
        self
    }

    /// Exact number of KV pages, instead of what the memory ratio leaves.
    pub fn num_page_override(mut self, num_pages: usize) -> Self {
        self.config.num_page_override = Some(num_pages);
        self
    }

    /// Longest sequence, prompt and output together. Default: the model's `max_position_embeddings`, or what the
    /// pages hold if less.
    pub fn max_seq_len_override(mut self, num_tokens: usize) -> Self {
        self.config.max_seq_len_override = Some(num_tokens);
        self
    }

    /// Prefix cache. Default: a radix tree.
    pub fn cache_type(mut self, cache_type: CacheType) -> Self {
        self.config.cache_type = cache_type;
        self
    }

    /// Random weights from `config.json` alone, for benchmarks. Default false.
    pub fn use_dummy_weight(mut self, dummy: bool) -> Self {
        self.config.use_dummy_weight = dummy;
        self
    }

    /// Base of the counter-based random numbers. Default 0.
    pub fn seed(mut self, seed: u64) -> Self {
        self.config.seed = seed;
        self
    }

    /// Whether a step is launched before the results of the one before are read. Default: where the device is
    /// asynchronous.
    pub fn overlap(mut self, overlap: bool) -> Self {
        self.config.overlap = Some(overlap);
        self
    }

    /// CPU threads. Default: all.
    pub fn threads(mut self, num: usize) -> Self {
        self.config.threads = Some(num);
        self
    }

    /// A `tokenizer.json` to use instead of the model's.
    pub fn tokenizer(mut self, path: impl Into<PathBuf>) -> Self {
        self.tokenizer = Some(path.into());
        self
    }

    /// A chat template to use instead of the model's, as Jinja text.
    pub fn chat_template(mut self, template: impl Into<String>) -> Self {
        self.chat_template = Some(template.into());
        self
    }

    /// Whether progress is shown where standard error is a terminal. Default true.
    pub fn progress(mut self, progress: bool) -> Self {
        self.progress = progress;
        self
    }

    /// Where model ids are fetched from and kept, instead of what the environment says.
    #[cfg(feature = "hub")]
    pub fn hub(mut self, settings: crate::hub::HubSettings) -> Self {
        self.hub = Some(settings);
        self
    }

    /// Fetches the model's files where they are not here, loads them and starts the engine.
    ///
    /// # Errors
    /// The model cannot be found or fetched; a file of it cannot be used; a setting cannot be met; the device
    /// cannot be used or has too little memory. The message names what is at fault.
    pub fn build(self) -> Result<LLM> {
        let dir = self.model_dir()?;
        let config = EngineConfig { model_path: dir.clone(), ..self.config };
        let seed = config.seed;
        let load_bar = if self.progress { progress::load_bar() } else { None };
        let tokenizer_path = self.tokenizer.unwrap_or_else(|| dir.join("tokenizer.json"));
        // Parsing a large tokenizer takes as long as mapping the weights: both at once.
        let (tokenizer, engine) = std::thread::scope(|scope| {
            let tokenizer = scope.spawn(|| load_tokenizer(&tokenizer_path, &dir));
            let engine = Engine::start(config, load_bar);
            (tokenizer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), engine)
        });
        let tokenizer_config = TokenizerConfig::from_dir(&dir)?;
        Ok(LLM::from_inner(Inner {
            engine: engine?,
            tokenizer: tokenizer?,
            template: load_template(tokenizer_config, self.chat_template, &dir),
            seed,
            num_requests: AtomicU64::new(0),
            progress: self.progress,
        }))
    }

    /// The directory of the model's files, fetched where they are not here.
    ///
    /// # Errors
    /// The model cannot be found or fetched.
    pub fn model_dir(&self) -> Result<PathBuf> {
        resolve(
            &self.model,
            !self.config.use_dummy_weight,
            self.progress,
            #[cfg(feature = "hub")]
            self.hub.as_ref(),
        )
    }
}

/// The tokenizer, or why there is none: token ids still work then.
fn load_tokenizer(path: &Path, dir: &Path) -> Result<std::result::Result<Arc<Tokenizer>, String>> {
    if path.is_file() {
        return Tokenizer::from_file(path).map(|tokenizer| Ok(Arc::new(tokenizer)));
    }
    let hint = match dir.join("tokenizer.model").is_file() {
        true => {
            "; tokenizer.model alone is not enough: convert it with transformers (AutoTokenizer, save_pretrained)"
        }
        false => "",
    };
    Ok(Err(format!("there is no tokenizer {}: only token ids can be used as prompts{hint}", path.display())))
}

fn load_template(
    config: TokenizerConfig,
    own: Option<String>,
    dir: &Path,
) -> std::result::Result<ChatTemplate, String> {
    let templates = match own {
        Some(text) => vec![("default".into(), text)],
        None => config.chat_templates,
    };
    if templates.is_empty() {
        return Err(format!(
            "the model has no chat template (neither in tokenizer_config.json nor as chat_template.jinja in {})",
            dir.display()
        ));
    }
    ChatTemplate::new(templates, config.special_tokens).map_err(|e| e.to_string())
}
