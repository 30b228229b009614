//! The settings of an engine, complete and typed. Nothing below reads the environment or the command line.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

pub use minisgl_kernels::AttnKernel;
use minisgl_kernels::DType;

use crate::{EngineError, Result};

/// Everything that an engine is started with.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// A directory of Hugging Face files: `config.json`, `*.safetensors`.
    pub model_path: PathBuf,
    /// Dtype of weights, activations and KV; `None` follows the checkpoint.
    pub dtype: Option<DType>,
    /// Where to compute.
    pub device: Device,
    /// Sequences in flight.
    pub max_running_req: usize,
    /// Prefill token budget of a step: the chunk size. `None`: 16,384 on a GPU of 64 GiB and more, else 8192.
    pub max_extend_tokens: Option<usize>,
    /// Tokens in a KV page: a power of two from 1 to 256.
    pub page_size: usize,
    /// Kernel families for prefill and decode.
    pub attention_backend: AttentionBackend,
    /// Decode batch sizes captured as CUDA graphs; `Some(vec![])` turns graphs off.
    pub cuda_graph_bs: Option<Vec<usize>>,
    /// Largest decode batch captured where `cuda_graph_bs` is `None`; `Some(0)` turns graphs off.
    pub cuda_graph_max_bs: Option<usize>,
    /// On CUDA, in 16 bits: own kernels for linear layers of up to 64 and of 512 and more tokens where they are faster. Without
    /// them every linear layer is cuBLASLt's, and a request's bits depend less on the size of its batch: the tests of
    /// equality in 16 bits hold that way. cuBLASLt itself promises no order of sums that is the same for all sizes.
    pub own_linear_kernels: bool,
    /// Share of the device's memory that the engine may hold in all, in (0, 1]. On the CPU it is a share of what
    /// is free at start. `None`: 0.9 on CUDA, 0.5 on the CPU.
    pub memory_ratio: Option<f64>,
    /// Exact number of KV pages.
    pub num_page_override: Option<usize>,
    /// Longest sequence, else the model's `max_position_embeddings`, or what the pages hold if less.
    pub max_seq_len_override: Option<usize>,
    /// Prefix cache.
    pub cache_type: CacheType,
    /// Random weights from `config.json` alone.
    pub use_dummy_weight: bool,
    /// Base of the counter-based random numbers.
    pub seed: u64,
    /// Whether step k+1 is planned and launched before the results of step k are read. `None`: where the device
    /// is asynchronous.
    pub overlap: Option<bool>,
    /// CPU threads; `None` takes all.
    pub threads: Option<usize>,
}

impl EngineConfig {
    /// The defaults for the model in `model_path`.
    pub fn new(model_path: impl Into<PathBuf>) -> Self {
        Self {
            model_path: model_path.into(),
            dtype: Some(DType::BF16),
            device: Device::Auto,
            max_running_req: 256,
            max_extend_tokens: None,
            page_size: 16,
            attention_backend: AttentionBackend::default(),
            cuda_graph_bs: None,
            cuda_graph_max_bs: None,
            own_linear_kernels: true,
            memory_ratio: None,
            num_page_override: None,
            max_seq_len_override: None,
            cache_type: CacheType::Radix,
            use_dummy_weight: false,
            seed: 0,
            overlap: None,
            threads: None,
        }
    }

    /// Checks every setting that can be checked without a model or a device.
    ///
    /// # Errors
    /// Names the setting, its value and what is allowed.
    pub fn check(&self) -> Result<()> {
        let range = |name: &str, value: usize, low: usize, high: usize| match (low..=high).contains(&value) {
            true => Ok(()),
            false => Err(EngineError::InvalidConfig(format!("{name} is {value}, expected {low} to {high}"))),
        };
        range("max_running_req", self.max_running_req, 1, 1 << 16)?;
        range("max_extend_tokens", self.max_extend_tokens.unwrap_or(1), 1, 1 << 20)?;
        range("num_page_override", self.num_page_override.unwrap_or(1), 1, 1 << 31)?;
        range("max_seq_len_override", self.max_seq_len_override.unwrap_or(2), 2, 1 << 24)?;
        range("threads", self.threads.unwrap_or(1), 1, 1024)?;
        if !self.page_size.is_power_of_two() || self.page_size > 256 {
            let found = self.page_size;
            let error = format!("page_size is {found}, expected a power of two from 1 to 256");
            return Err(EngineError::InvalidConfig(error));
        }
        if let Some(ratio) = self.memory_ratio.filter(|ratio| !(*ratio > 0.0 && *ratio <= 1.0)) {
            let error = format!("memory_ratio is {ratio}, expected above 0 and at most 1");
            return Err(EngineError::InvalidConfig(error));
        }
        for &size in self.cuda_graph_bs.iter().flatten() {
            range("cuda_graph_bs", size, 1, self.max_running_req)?;
        }
        Ok(())
    }

    /// The decode batch sizes to capture: ascending, and up to the largest batch where nobody chose.
    pub(crate) fn graph_sizes(&self) -> Vec<usize> {
        let mut sizes = match (&self.cuda_graph_bs, self.cuda_graph_max_bs) {
            (Some(sizes), _) => sizes.clone(),
            (None, Some(0)) => Vec::new(),
            (None, max) => {
                let max = max.unwrap_or(256).min(self.max_running_req);
                // Padding wastes at most a quarter at small sizes and 16 rows at large ones.
                let steps = [1, 2, 4].into_iter().chain((8..).step_by(8)).take_while(|&size| size < 64);
                steps.chain((64..).step_by(16)).take_while(|&size| size < max).chain([max]).collect()
            }
        };
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }
}

/// Where to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Device {
    /// The first GPU if there is one and the program was built for it, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this ordinal.
    Cuda(usize),
}

impl FromStr for Device {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            "cuda" => Ok(Device::Cuda(0)),
            _ => name
                .strip_prefix("cuda:")
                .and_then(|ordinal| ordinal.parse().ok())
                .map(Device::Cuda)
                .ok_or_else(|| format!("unknown device '{name}': expected auto, cpu, cuda or cuda:N")),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

/// Which prefix cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CacheType {
    /// A radix tree over pages of tokens.
    #[default]
    Radix,
    /// None: every prompt is computed in full.
    Naive,
}

impl FromStr for CacheType {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "radix" => Ok(CacheType::Radix),
            "naive" => Ok(CacheType::Naive),
            _ => Err(format!("unknown cache_type '{name}': expected radix or naive")),
        }
    }
}

/// The attention kernels for prefill and for decode, written `fa`, or `fa,fi` for one each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AttentionBackend {
    /// For steps with a chunk of a prompt.
    pub prefill: AttnKernel,
    /// For steps in which every sequence has one query.
    pub decode: AttnKernel,
}

impl FromStr for AttentionBackend {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let (prefill, decode) = name.split_once(',').unwrap_or((name, name));
        Ok(Self { prefill: prefill.trim().parse()?, decode: decode.trim().parse()? })
    }
}

impl fmt::Display for AttentionBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.prefill == self.decode {
            self.prefill.fmt(f)
        } else {
            write!(f, "{},{}", self.prefill, self.decode)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest decode batch has a graph, whether or not it is a round number, and no graph is larger.
    ///
    /// Break: `.chain([max])` in `EngineConfig::graph_sizes`.
    #[test]
    fn fault_13_graph_sizes_cover_the_largest_batch() {
        for max_running_req in 1..=300 {
            let sizes = EngineConfig { max_running_req, ..EngineConfig::new("model") }.graph_sizes();
            let largest = max_running_req.min(256);
            assert_eq!(sizes.last(), Some(&largest), "{sizes:?}");
            assert!(sizes.is_sorted_by(|a, b| a < b), "{sizes:?}");
            // A batch is padded by at most a quarter, or to the next even one of the smallest.
            let is_close = |size: usize| sizes.iter().any(|&s| size <= s && s <= (size + 16).min(2 * size));
            assert!((1..=largest).all(is_close), "{sizes:?}");
        }
        let chosen = |sizes: &[usize], max| {
            let config = EngineConfig { cuda_graph_bs: Some(sizes.to_vec()), ..EngineConfig::new("model") };
            EngineConfig { cuda_graph_max_bs: max, ..config }.graph_sizes()
        };
        assert_eq!(chosen(&[8, 1, 8], None), [1, 8], "the caller's, in order, once");
        assert!(chosen(&[], None).is_empty());
        let none = EngineConfig { cuda_graph_max_bs: Some(0), ..EngineConfig::new("model") };
        assert!(none.graph_sizes().is_empty());
        assert_eq!(chosen(&[7, 3], Some(0)), [3, 7], "an explicit list wins");
    }
}
