//! The model families: one row each. A family is the Llama decoder with the flags that set it apart.

/// What sets one family apart from the others.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// As in `architectures[0]` of `config.json`.
    pub architecture: &'static str,
    /// Which projections of attention have a bias.
    pub attention_bias: BiasRule,
    /// Whether `mlp_bias` gives gate, up and down a bias.
    pub mlp_bias: bool,
    /// RMSNorm of each query and key head before the rotation.
    pub qk_norm: bool,
    /// Which layers see a sliding window.
    pub window: WindowRule,
    /// Elements of a head where `head_dim` is left out; `None`: `hidden_size / num_attention_heads`.
    pub head_dim: Option<usize>,
    /// Key and value heads where `num_key_value_heads` is left out; `None`: as many as query heads.
    pub num_kv_heads: Option<usize>,
}

/// Which projections of attention have a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BiasRule {
    /// None, whatever `attention_bias` says.
    Never,
    /// q, k and v, whatever `attention_bias` says.
    Qkv,
    /// q, k, v and the output projection, where `attention_bias` is true.
    FromAttentionBias,
}

/// Which layers see a sliding window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowRule {
    /// None.
    Never,
    /// All, where `sliding_window` is set.
    All,
    /// Those from `max_window_layers` on, where `use_sliding_window` is true.
    FromMaxWindowLayers,
}

/// Window of the families that have one, where `sliding_window` is left out (`null` is none).
pub(super) const DEFAULT_WINDOW: u32 = 4096;

/// The table of families. What a configuration leaves out has the value that Hugging Face transformers gives it.
pub const FAMILIES: &[Family] = &[
    // Llama 2 and 3.x (Touvron et al. 2023).
    Family {
        architecture: "LlamaForCausalLM",
        attention_bias: BiasRule::FromAttentionBias,
        mlp_bias: true,
        qk_norm: false,
        window: WindowRule::Never,
        head_dim: None,
        num_kv_heads: None,
    },
    // Mistral 7B (Jiang et al. 2023): Llama with a sliding window.
    Family {
        architecture: "MistralForCausalLM",
        attention_bias: BiasRule::Never,
        mlp_bias: false,
        qk_norm: false,
        window: WindowRule::All,
        head_dim: None,
        num_kv_heads: Some(8),
    },
    // Qwen2 and Qwen2.5: biased q, k and v.
    Family {
        architecture: "Qwen2ForCausalLM",
        attention_bias: BiasRule::Qkv,
        mlp_bias: false,
        qk_norm: false,
        window: WindowRule::FromMaxWindowLayers,
        head_dim: None,
        num_kv_heads: Some(32),
    },
    // Qwen3 dense: normalised queries and keys.
    Family {
        architecture: "Qwen3ForCausalLM",
        attention_bias: BiasRule::FromAttentionBias,
        mlp_bias: false,
        qk_norm: true,
        window: WindowRule::FromMaxWindowLayers,
        head_dim: Some(128),
        num_kv_heads: Some(32),
    },
];

impl Family {
    /// The family of an architecture.
    pub fn find(architecture: &str) -> Option<&'static Family> {
        FAMILIES.iter().find(|family| family.architecture == architecture)
    }
}
