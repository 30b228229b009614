//! Small random models of every family: written as a Hugging Face directory, and as the oracle's decoder.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use minisgl_kernels::DType;
use minisgl_kernels::philox::{philox4x32_10, unit_open};
use minisgl_reference::{Activation, Decoder, DecoderSpec, Precision, RopeScaling, RopeSpec, Weights};
use serde_json::{Map, Value, json};

/// The directory of the trained model in the repository. Cargo starts a test in its package's directory, as does
/// whoever runs the test elsewhere: the path of the machine that built it is of no use there.
pub fn bundled() -> PathBuf {
    PathBuf::from("../models/rust-docs-6m")
}

/// The oracle's precision that stores as `dtype` does.
pub fn precision(dtype: DType) -> Precision {
    match dtype {
        DType::BF16 => Precision::Bf16,
        DType::F16 => Precision::F16,
        DType::F32 => Precision::F32,
    }
}

/// A model family and the quirks that tests turn on in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelKind {
    /// Llama 3 rope, tied embeddings.
    Llama,
    /// Sliding window in every layer.
    Mistral,
    /// Biases, YaRN, an odd vocabulary, old spelling of the configuration.
    Qwen2,
    /// Query and key norms, a head size apart from hidden / heads, groups of three.
    Qwen3,
}

impl ModelKind {
    /// Every family.
    pub const ALL: [ModelKind; 4] = [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3];

    /// The oracle's description of the small model.
    pub fn spec(self) -> DecoderSpec {
        let rope = |head_dim, scaling| RopeSpec { head_dim, theta: 10_000.0, scaling };
        let base = DecoderSpec {
            hidden: 64,
            layers: 3,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            ffn: 96,
            vocab: 128,
            eps: 1e-5,
            rope: rope(16, RopeScaling::Default),
            qkv_bias: false,
            qk_norm: false,
            tied: false,
            activation: Activation::Silu,
            windows: vec![None; 3],
        };
        match self {
            Self::Llama => DecoderSpec {
                tied: true,
                rope: rope(
                    16,
                    RopeScaling::Llama3 {
                        factor: 8.0,
                        low_freq_factor: 1.0,
                        high_freq_factor: 4.0,
                        original_max_position_embeddings: 64,
                    },
                ),
                ..base
            },
            Self::Mistral => {
                DecoderSpec { windows: vec![Some(7); 3], activation: Activation::GeluTanh, ..base }
            }
            Self::Qwen2 => DecoderSpec {
                qkv_bias: true,
                vocab: 131,
                heads: 7,
                kv_heads: 1,
                rope: rope(
                    16,
                    RopeScaling::Yarn {
                        factor: 4.0,
                        original_max_position_embeddings: 64,
                        attention_factor: None,
                        beta_fast: None,
                        beta_slow: None,
                        mscale: None,
                        mscale_all_dim: None,
                        truncate: true,
                    },
                ),
                ..base
            },
            Self::Qwen3 => DecoderSpec {
                qk_norm: true,
                heads: 6,
                kv_heads: 2,
                head_dim: 24,
                rope: rope(24, RopeScaling::Default),
                windows: vec![None, None, Some(5)],
                ..base
            },
        }
    }

    fn config(self, spec: &DecoderSpec, dtype: DType, eos: &[u32]) -> Value {
        let dtype_name = match dtype {
            DType::BF16 => "bfloat16",
            DType::F16 => "float16",
            DType::F32 => "float32",
        };
        let mut config = json!({
            "hidden_size": spec.hidden,
            "intermediate_size": spec.ffn,
            "num_hidden_layers": spec.layers,
            "num_attention_heads": spec.heads,
            "num_key_value_heads": spec.kv_heads,
            "head_dim": spec.head_dim,
            "vocab_size": spec.vocab,
            "max_position_embeddings": 512,
            "rms_norm_eps": spec.eps,
            "tie_word_embeddings": spec.tied,
            "hidden_act": "silu",
            "eos_token_id": eos,
        });
        let extra = match self {
            Self::Llama => json!({
                "architectures": ["LlamaForCausalLM"],
                "dtype": dtype_name,
                "rope_parameters": {
                    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
                },
            }),
            Self::Mistral => json!({
                "architectures": ["MistralForCausalLM"],
                "torch_dtype": dtype_name,
                "sliding_window": 7,
                "rope_theta": 10000.0,
                "hidden_act": "gelu_pytorch_tanh",
            }),
            Self::Qwen2 => json!({
                "architectures": ["Qwen2ForCausalLM"],
                "torch_dtype": dtype_name,
                "rope_theta": 10000.0,
                "rope_scaling": { "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64 },
                "use_sliding_window": false,
                "sliding_window": 7,
            }),
            Self::Qwen3 => json!({
                "architectures": ["Qwen3ForCausalLM"],
                "dtype": dtype_name,
                "rope_parameters": { "rope_type": "default", "rope_theta": 10000.0 },
                "use_sliding_window": true,
                "sliding_window": 5,
                "max_window_layers": 2,
            }),
        };
        let target: &mut Map<String, Value> = config.as_object_mut().expect("an object");
        target.extend(extra.as_object().expect("an object").clone());
        config
    }
}

/// A model directory that is deleted on drop, and its oracle.
pub struct TestModel {
    dir: PathBuf,
    /// The whole model by full recompute, in f64.
    pub oracle: Decoder,
}

impl TestModel {
    /// A random model of `kind`, stored as `dtype` in `shards` files; the oracle has the stored values.
    pub fn random(kind: ModelKind, dtype: DType, shards: usize, seed: u64, eos: &[u32]) -> Self {
        Self::with_spec(kind, kind.spec(), dtype, shards, seed, eos)
    }

    /// As [`random`](Self::random), with heads of `head_dim` elements.
    pub fn with_head_dim(kind: ModelKind, head_dim: usize, dtype: DType, seed: u64) -> Self {
        let spec = kind.spec();
        let rope = RopeSpec { head_dim, ..spec.rope };
        Self::with_spec(kind, DecoderSpec { head_dim, rope, ..spec }, dtype, 1, seed, &[])
    }

    fn with_spec(
        kind: ModelKind,
        spec: DecoderSpec,
        dtype: DType,
        shards: usize,
        seed: u64,
        eos: &[u32],
    ) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
        let weights = Weights::collect(&spec, |name, shape| {
            let len: usize = shape.iter().product();
            let noise = noise(seed, tensors.len() as u32, len);
            // Large enough that attention is far from uniform and logits are far apart.
            let (mean, scale) = match shape {
                [_, cols] => (0.0, 3.0 / (*cols as f32).sqrt()),
                _ if name.contains("norm") => (1.0, 0.3),
                _ => (0.0, 0.5),
            };
            let values: Vec<f32> = noise.iter().map(|x| mean + scale * x).collect();
            let bytes = dtype.narrow(&values);
            let stored = dtype.widen(&bytes);
            tensors.push((name.to_owned(), shape.to_vec(), bytes));
            stored
        });

        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("minisgl-model-{}-{number}", std::process::id()));
        fs::create_dir_all(&dir).expect("a temporary directory");
        write_json(&dir.join("config.json"), &kind.config(&spec, dtype, eos));
        write_shards(&dir, &tensors, dtype, shards);
        Self { dir, oracle: Decoder { spec, weights, precision: Precision::F64 } }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for TestModel {
    fn drop(&mut self) {
        // A directory left behind in the system's temporary folder is no reason to fail.
        drop(fs::remove_dir_all(&self.dir));
    }
}

/// Reproducible numbers, uniform in (-1, 1).
pub fn noise(seed: u64, stream: u32, len: usize) -> Vec<f32> {
    let key = [seed as u32, (seed >> 32) as u32];
    let block = |i: usize| philox4x32_10([i as u32, stream, 7, 0], key);
    (0..len.div_ceil(4)).flat_map(block).take(len).map(|bits| 2.0 * unit_open(bits) - 1.0).collect()
}

/// Reproducible token ids below `vocab`.
pub fn random_tokens(seed: u64, stream: u32, len: usize, vocab: usize) -> Vec<u32> {
    noise(seed, stream, len)
        .iter()
        .map(|x| (((x + 1.0) / 2.0 * vocab as f32) as u32).min(vocab as u32 - 1))
        .collect()
}

fn write_json(path: &Path, value: &Value) {
    fs::write(path, serde_json::to_vec_pretty(value).expect("JSON")).expect("a file in the model directory");
}

/// Writes tensors as safetensors files: the length of the header, the header, the data.
fn write_shards(dir: &Path, tensors: &[(String, Vec<usize>, Vec<u8>)], dtype: DType, shards: usize) {
    let mut weight_map = Map::new();
    let per_shard = tensors.len().div_ceil(shards);
    for (shard, tensors) in tensors.chunks(per_shard).enumerate() {
        let name = match shards {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{shards:05}.safetensors", shard + 1),
        };
        let mut header = Map::new();
        let mut data = Vec::new();
        for (tensor, shape, bytes) in tensors {
            let start = data.len();
            data.extend_from_slice(bytes);
            let dtype = dtype.to_string().to_uppercase();
            header.insert(
                tensor.clone(),
                json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, data.len()] }),
            );
            weight_map.insert(tensor.clone(), json!(name));
        }
        let header = serde_json::to_vec(&header).expect("JSON");
        let file = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
        fs::write(dir.join(name), file).expect("a file in the model directory");
    }
    if shards > 1 {
        write_json(&dir.join("model.safetensors.index.json"), &json!({ "weight_map": weight_map }));
    }
}
