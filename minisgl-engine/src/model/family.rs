//! The model families: one row each. A family is the Llama decoder with the flags that set it apart.

/// What sets one family apart from the others.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// As in `architectures[0]` of `config.json`.
    pub architecture: &'static str,
    /// Bias of the q, k and v projections where `attention_bias` does not say.
    pub qkv_bias: bool,
    /// Whether the output projection follows `attention_bias`.
    pub o_follows_attention_bias: bool,
    /// RMSNorm of each query and key head before the rotation.
    pub qk_norm: bool,
    /// Which layers see a sliding window.
    pub window: WindowRule,
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

/// The table of families.
pub const FAMILIES: &[Family] = &[
    // Llama 2 and 3.x (Touvron et al. 2023).
    Family {
        architecture: "LlamaForCausalLM",
        qkv_bias: false,
        o_follows_attention_bias: true,
        qk_norm: false,
        window: WindowRule::Never,
    },
    // Mistral 7B (Jiang et al. 2023): Llama with a sliding window.
    Family {
        architecture: "MistralForCausalLM",
        qkv_bias: false,
        o_follows_attention_bias: true,
        qk_norm: false,
        window: WindowRule::All,
    },
    // Qwen2 and Qwen2.5: biased q, k and v.
    Family {
        architecture: "Qwen2ForCausalLM",
        qkv_bias: true,
        o_follows_attention_bias: false,
        qk_norm: false,
        window: WindowRule::FromMaxWindowLayers,
    },
    // Qwen3 dense: no bias, normalised queries and keys.
    Family {
        architecture: "Qwen3ForCausalLM",
        qkv_bias: false,
        o_follows_attention_bias: true,
        qk_norm: true,
        window: WindowRule::FromMaxWindowLayers,
    },
];

impl Family {
    /// The family of an architecture.
    pub fn find(architecture: &str) -> Option<&'static Family> {
        FAMILIES.iter().find(|family| family.architecture == architecture)
    }
}
