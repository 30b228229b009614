use crate::DecoderSpec;

/// A decoder's weights, each `[out, in]` row-major as in a Hugging Face checkpoint.
#[derive(Clone, Debug)]
pub struct Weights {
    /// `[vocab, hidden]`.
    pub embed: Vec<f32>,
    /// One a layer.
    pub layers: Vec<LayerWeights>,
    /// `[hidden]`.
    pub norm: Vec<f32>,
    /// `[vocab, hidden]`; none where it is `embed`.
    pub lm_head: Option<Vec<f32>>,
}

/// One layer's weights.
#[derive(Clone, Debug)]
pub struct LayerWeights {
    /// `[hidden]`: before attention.
    pub input_norm: Vec<f32>,
    /// `[heads * head_dim, hidden]`.
    pub q: Vec<f32>,
    /// `[kv_heads * head_dim, hidden]`.
    pub k: Vec<f32>,
    /// `[kv_heads * head_dim, hidden]`.
    pub v: Vec<f32>,
    /// Biases of `q`, `k` and `v`.
    pub qkv_bias: Option<[Vec<f32>; 3]>,
    /// `[head_dim]` each: norms of every query and every key head.
    pub qk_norm: Option<[Vec<f32>; 2]>,
    /// `[hidden, heads * head_dim]`.
    pub o: Vec<f32>,
    /// `[hidden]`: before the feed-forward part.
    pub post_norm: Vec<f32>,
    /// `[ffn, hidden]`.
    pub gate: Vec<f32>,
    /// `[ffn, hidden]`.
    pub up: Vec<f32>,
    /// `[hidden, ffn]`.
    pub down: Vec<f32>,
}

impl Weights {
    /// Collects the weights from `tensor(name, shape)`, which is asked once for each tensor by its Hugging Face
    /// name (that of `LlamaForCausalLM`, `Qwen2ForCausalLM`, `Qwen3ForCausalLM`, `MistralForCausalLM`): from a
    /// file, or from random numbers that the caller also writes to a file.
    pub fn collect(spec: &DecoderSpec, mut tensor: impl FnMut(&str, &[usize]) -> Vec<f32>) -> Self {
        let mut get = |name: &str, shape: &[usize]| {
            let data = tensor(name, shape);
            assert_eq!(data.len(), shape.iter().product::<usize>(), "elements of {name}");
            data
        };
        let &DecoderSpec { hidden, ffn, head_dim, vocab, .. } = spec;
        let (q_cols, kv_cols) = (spec.heads * head_dim, spec.kv_heads * head_dim);
        let embed = get("model.embed_tokens.weight", &[vocab, hidden]);
        let mut layers = Vec::with_capacity(spec.layers);
        for i in 0..spec.layers {
            let mut get = |name: &str, shape: &[usize]| get(&format!("model.layers.{i}.{name}"), shape);
            layers.push(LayerWeights {
                input_norm: get("input_layernorm.weight", &[hidden]),
                q: get("self_attn.q_proj.weight", &[q_cols, hidden]),
                k: get("self_attn.k_proj.weight", &[kv_cols, hidden]),
                v: get("self_attn.v_proj.weight", &[kv_cols, hidden]),
                qkv_bias: spec.qkv_bias.then(|| {
                    [("q", q_cols), ("k", kv_cols), ("v", kv_cols)]
                        .map(|(name, cols)| get(&format!("self_attn.{name}_proj.bias"), &[cols]))
                }),
                qk_norm: spec.qk_norm.then(|| {
                    ["q", "k"].map(|name| get(&format!("self_attn.{name}_norm.weight"), &[head_dim]))
                }),
                o: get("self_attn.o_proj.weight", &[hidden, q_cols]),
                post_norm: get("post_attention_layernorm.weight", &[hidden]),
                gate: get("mlp.gate_proj.weight", &[ffn, hidden]),
                up: get("mlp.up_proj.weight", &[ffn, hidden]),
                down: get("mlp.down_proj.weight", &[hidden, ffn]),
            });
        }
        let norm = get("model.norm.weight", &[hidden]);
        let lm_head = (!spec.tied).then(|| get("lm_head.weight", &[vocab, hidden]));
        Self { embed, layers, norm, lm_head }
    }
}
