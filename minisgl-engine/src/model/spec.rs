//! What `config.json` and `generation_config.json` say of a model.

use std::path::Path;

use minisgl_kernels::{Activation, AttnSpec, DType};

use super::family::{BiasRule, DEFAULT_WINDOW, FAMILIES, Family, WindowRule};
use super::fields::{Fields, read_json};
use super::rope::RopeSpec;
use crate::{EngineError, Result};

/// Sizes and flags of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// `architectures[0]`.
    pub architecture: String,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Width of the feed-forward layer.
    pub ffn: usize,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Longest sequence that the model was made for.
    pub max_position: usize,
    /// Epsilon of every RMSNorm.
    pub eps: f32,
    /// Rotary embedding.
    pub rope: RopeSpec,
    /// Whether the output projection is the embedding table.
    pub tied: bool,
    /// Activation of the gate.
    pub activation: Activation,
    /// Bias of q, k and v.
    pub qkv_bias: bool,
    /// Bias of the attention's output projection.
    pub o_bias: bool,
    /// Bias of gate, up and down.
    pub mlp_bias: bool,
    /// RMSNorm of each query and key head.
    pub qk_norm: bool,
    /// Sliding window of each layer.
    pub windows: Vec<Option<u32>>,
    /// Dtype of the checkpoint, where the configuration says it.
    pub dtype: Option<DType>,
    /// Ids that end an output.
    pub eos_token_ids: Vec<u32>,
}

impl ModelSpec {
    /// Reads a model directory's configuration.
    ///
    /// # Errors
    /// Names the file and the field that is missing, malformed or not supported.
    pub fn read(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            return Err(EngineError::Model(format!("{} is not a directory", dir.display())));
        }
        let path = dir.join("config.json");
        let value = read_json(&path)?;
        let place = path.display().to_string();
        let mut spec = Self::parse(&Fields::of(&place, &value)?)?;

        let path = dir.join("generation_config.json");
        if path.is_file() {
            let value = read_json(&path)?;
            let place = path.display().to_string();
            if let Some(ids) = Fields::of(&place, &value)?.token_ids("eos_token_id")? {
                spec.eos_token_ids = ids;
            }
        }
        Ok(spec)
    }

    fn parse(config: &Fields<'_>) -> Result<Self> {
        let architecture = config
            .get("architectures")
            .and_then(|list| list.get(0))
            .and_then(|name| name.as_str())
            .ok_or_else(|| config.error("architectures", "a list with one name"))?;
        let family = Family::find(architecture).ok_or_else(|| {
            let known: Vec<_> = FAMILIES.iter().map(|family| family.architecture).collect();
            EngineError::Model(format!(
                "{}: architecture '{architecture}' is not supported; supported are {}",
                config.place,
                known.join(", ")
            ))
        })?;

        let hidden = config.required_size("hidden_size")?;
        let num_layers = config.required_size("num_hidden_layers")?;
        if num_layers > 1024 {
            return Err(config.error("num_hidden_layers", "at most 1024"));
        }
        let num_heads = config.required_size("num_attention_heads")?;
        let num_kv_heads = match config.size("num_key_value_heads")? {
            Some(num_kv_heads) => num_kv_heads,
            None if config.is_null("num_key_value_heads") => num_heads,
            None => family.num_kv_heads.unwrap_or(num_heads),
        };
        if !num_heads.is_multiple_of(num_kv_heads) {
            let expected = format!("a divisor of num_attention_heads ({num_heads})");
            return Err(config.error("num_key_value_heads", &expected));
        }
        let left_out = family.head_dim.filter(|_| !config.is_null("head_dim"));
        let head_dim = match config.size("head_dim")?.or(left_out) {
            Some(head_dim) => head_dim,
            None if hidden.is_multiple_of(num_heads) => hidden / num_heads,
            None => {
                return Err(config.error("head_dim", "a size, as hidden_size is no multiple of the heads"));
            }
        };
        if !head_dim.is_multiple_of(2) || head_dim > 1024 {
            return Err(EngineError::Model(format!(
                "{}: head_dim is {head_dim}, expected an even number of at most 1024",
                config.place
            )));
        }
        if num_heads > 4096 {
            return Err(config.error("num_attention_heads", "at most 4096"));
        }
        let max_position = config.required_size("max_position_embeddings")?;
        let attention_bias = config.flag("attention_bias", false)?;
        let (qkv_bias, o_bias) = match family.attention_bias {
            BiasRule::Never => (false, false),
            BiasRule::Qkv => (true, false),
            BiasRule::FromAttentionBias => (attention_bias, attention_bias),
        };
        Ok(Self {
            architecture: architecture.to_owned(),
            hidden,
            num_layers,
            num_heads,
            num_kv_heads,
            head_dim,
            ffn: config.required_size("intermediate_size")?,
            vocab: config.required_size("vocab_size")?,
            max_position,
            eps: config.positive("rms_norm_eps")?.unwrap_or(1e-6) as f32,
            rope: RopeSpec::read(config, max_position)?,
            tied: config.flag("tie_word_embeddings", false)?,
            activation: read_activation(config)?,
            qkv_bias,
            o_bias,
            mlp_bias: config.flag("mlp_bias", false)? && family.mlp_bias,
            qk_norm: family.qk_norm,
            windows: read_windows(config, family.window, num_layers)?,
            dtype: read_dtype(config)?,
            eos_token_ids: config.token_ids("eos_token_id")?.unwrap_or_default(),
        })
    }

    /// The sizes of attention in `layer`.
    pub fn attn_spec(&self, layer: usize, page_size: usize) -> AttnSpec {
        AttnSpec {
            num_heads: self.num_heads,
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            window: self.windows[layer],
            page_size,
        }
    }

    /// Bytes of KV that one token takes in all layers.
    pub const fn kv_bytes_per_token(&self, dtype: DType) -> usize {
        2 * self.num_layers * self.num_kv_heads * self.head_dim * dtype.size_bytes()
    }

    /// Parameters: in the body, and in the table or tables of tokens.
    pub const fn num_params(&self) -> (usize, usize) {
        let q = self.num_heads * self.head_dim;
        let kv = self.num_kv_heads * self.head_dim;
        let bias = self.qkv_bias as usize * (q + 2 * kv)
            + self.o_bias as usize * self.hidden
            + self.mlp_bias as usize * (2 * self.ffn + self.hidden);
        let norms = 2 * self.hidden + self.qk_norm as usize * 2 * self.head_dim;
        let layer = self.hidden * (q + 2 * kv) + q * self.hidden + 3 * self.hidden * self.ffn + bias + norms;
        let tables = if self.tied { 1 } else { 2 };
        (self.num_layers * layer + self.hidden, tables * self.vocab * self.hidden)
    }

    /// Bytes of all weights on the device.
    pub const fn weight_bytes(&self, dtype: DType) -> usize {
        let (body, tables) = self.num_params();
        (body + tables) * dtype.size_bytes()
    }
}

fn read_activation(config: &Fields<'_>) -> Result<Activation> {
    Ok(match config.text("hidden_act")?.unwrap_or("silu") {
        "silu" | "swish" => Activation::Silu,
        "gelu" => Activation::Gelu,
        "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Activation::GeluTanh,
        _ => return Err(config.error("hidden_act", "silu, gelu or gelu_pytorch_tanh")),
    })
}

fn read_dtype(config: &Fields<'_>) -> Result<Option<DType>> {
    // The old spelling is `torch_dtype`; `auto` says nothing.
    let (name, text) = match config.text("dtype")? {
        Some(text) => ("dtype", text),
        None => match config.text("torch_dtype")? {
            Some(text) => ("torch_dtype", text),
            None => return Ok(None),
        },
    };
    if text == "auto" {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| config.error(name, "bfloat16, float16 or float32"))
}

fn read_windows(config: &Fields<'_>, rule: WindowRule, num_layers: usize) -> Result<Vec<Option<u32>>> {
    let left_out = Some(DEFAULT_WINDOW).filter(|_| !config.is_null("sliding_window"));
    let size = config.size("sliding_window")?.map(|size| size as u32).or(left_out);
    let first = match rule {
        WindowRule::Never => return Ok(vec![None; num_layers]),
        WindowRule::All => 0,
        WindowRule::FromMaxWindowLayers if !config.flag("use_sliding_window", false)? => {
            return Ok(vec![None; num_layers]);
        }
        WindowRule::FromMaxWindowLayers => match config.get("max_window_layers") {
            None => 28,
            Some(value) => {
                value.as_u64().ok_or_else(|| config.error("max_window_layers", "a whole number"))? as usize
            }
        },
    };
    let Some(types) = config.get("layer_types") else {
        return Ok((0..num_layers).map(|layer| size.filter(|_| layer >= first)).collect());
    };
    let error = || config.error("layer_types", "full_attention or sliding_attention for each layer");
    let types = types.as_array().filter(|types| types.len() == num_layers).ok_or_else(error)?;
    types
        .iter()
        .map(|kind| match kind.as_str() {
            Some("full_attention") => Ok(None),
            Some("sliding_attention") => Ok(size),
            _ => Err(error()),
        })
        .collect()
}
