"""Random-weight models with awkward sizes, as Hugging Face directories."""

import json
import pathlib

import torch
import transformers

TOKENS = 300  # Longest sequence of a test: prompt and output.


def case(family, heads, kv_heads, head_dim, vocab, hidden, **extra):
    """The arguments of a configuration; `json` in `extra` is written over the fields of config.json."""
    config = dict(
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=hidden + 72,
        num_hidden_layers=3,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    override = extra.pop("json", {})
    config.update(extra)
    return family, config, override


def rope(kind, theta=10000.0, **more):
    return {"rope_type": kind, "rope_theta": theta, **more}


LLAMA3 = rope(
    "llama3", 5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=64)

# Groups of 1, 3, 7 and 8; heads of 64, 96, 128 and 256, and two sizes that only plain kernels have.
CASES = {
    "llama-tied-h64-g1": case("Llama", 4, 4, 64, 263, 256, tie_word_embeddings=True),
    "llama-bias-h128-g3-llama3": case(
        "Llama", 6, 2, 128, 331, 384, attention_bias=True, mlp_bias=True, rope_parameters=LLAMA3
    ),
    "llama-h96-g7-linear": case("Llama", 7, 1, 96, 257, 336, rope_parameters=rope("linear", factor=2.5)),
    "llama-h64-g8-dynamic": case("Llama", 8, 1, 64, 509, 256, rope_parameters=rope("dynamic", factor=4.0)),
    # transformers takes the trained length of dynamic NTK from max_position_embeddings, whatever else is there.
    "llama-h64-g8-dynamic-original": case(
        "Llama", 8, 1, 64, 509, 256,
        rope_parameters=rope("dynamic", factor=4.0),
        json={"rope_parameters": rope("dynamic", factor=4.0, original_max_position_embeddings=32)},
    ),
    "llama-gelu-h128-g8-yarn": case("Llama", 8, 1, 128, 1031, 256, hidden_act="gelu", rope_parameters=YARN),
    "llama-h80-g7": case("Llama", 7, 1, 80, 263, 280, rms_norm_eps=1e-6),
    "llama-h256-g1-old-names": case(
        "Llama", 2, 2, 256, 263, 256,
        rope_parameters=rope("linear", 1000.0, factor=3.0),
        json={"rope_parameters": None, "rope_theta": 1000.0, "rope_scaling": {"type": "linear", "factor": 3.0}},
    ),
    "mistral-window17-h128-g8": case("Mistral", 8, 1, 128, 1031, 320, sliding_window=17),
    "mistral-window2-h64-g3": case("Mistral", 6, 2, 64, 257, 192, sliding_window=2),
    "mistral-window64-h96-g1": case("Mistral", 4, 4, 96, 257, 256, sliding_window=64),
    "mistral-no-window-h64-g7": case(
        "Mistral", 14, 2, 64, 397, 280, sliding_window=None, hidden_act="gelu_pytorch_tanh"
    ),
    "qwen2-h64-g7-yarn": case("Qwen2", 7, 1, 64, 515, 448, rope_parameters=YARN),
    "qwen2-h128-g3-window9-from-1": case(
        "Qwen2", 6, 2, 128, 263, 384,
        use_sliding_window=True,
        sliding_window=9,
        max_window_layers=1,
        json={"layer_types": ...},
    ),
    "qwen2-tied-h96-g8-layer-types": case(
        "Qwen2", 8, 1, 96, 263, 256,
        tie_word_embeddings=True,
        use_sliding_window=True,
        sliding_window=33,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    # Its biases are part of the family: the field is another family's.
    "qwen2-h64-g1-attention-bias-false": case("Qwen2", 4, 4, 64, 263, 256, json={"attention_bias": False}),
    "qwen3-tied-h128-g8": case("Qwen3", 8, 1, 128, 1031, 256, tie_word_embeddings=True),
    "qwen3-bias-h96-g1": case("Qwen3", 3, 3, 96, 263, 192, attention_bias=True, rms_norm_eps=1e-3),
    "qwen3-h256-g3-yarn-mscale": case(
        "Qwen3", 6, 2, 256, 263, 256,
        rope_parameters=dict(YARN, mscale=1.3, mscale_all_dim=0.7, beta_fast=16.0, beta_slow=2.0),
    ),
    "qwen3-h128-g7-yarn-attention-factor": case(
        "Qwen3", 7, 1, 128, 263, 224, rope_parameters=dict(YARN, attention_factor=0.8, truncate=False)
    ),
    # Left out, its heads have 128 elements, whatever the hidden size.
    "qwen3-default-head-dim-g3": case("Qwen3", 6, 2, 128, 263, 192, json={"head_dim": ...}),
    "qwen3-h40-g3": case("Qwen3", 6, 2, 40, 131, 192),
}

# Fields of config.json that the project alone is told wrongly, and the case in which that must show.
LIES = {
    "a window of one more": ("mistral-window17-h128-g8", {"sliding_window": 18}),
    "a window of one less": ("qwen2-h128-g3-window9-from-1", {"sliding_window": 8}),
    "windows from another layer on": ("qwen2-h128-g3-window9-from-1", {"max_window_layers": 2}),
    "another eps": ("qwen3-bias-h96-g1", {"rms_norm_eps": 1.01e-3}),
    "another theta": ("llama-tied-h64-g1", {"rope_parameters": rope("default", 10010.0)}),
    "no llama3 scaling": ("llama-bias-h128-g3-llama3", {"rope_parameters": rope("default", 5e5)}),
    "yarn without its attention factor": (
        "qwen2-h64-g7-yarn", {"rope_parameters": dict(YARN, attention_factor=1.0)},
    ),
    "yarn with whole borders": (
        "qwen3-h128-g7-yarn-attention-factor", {"rope_parameters": dict(YARN, attention_factor=0.8)},
    ),
    "the other GELU": ("llama-gelu-h128-g8-yarn", {"hidden_act": "gelu_pytorch_tanh"}),
    "SiLU for GELU": ("mistral-no-window-h64-g7", {"hidden_act": "silu"}),
}


def build(name, directory, seed):
    """Writes a model of `CASES[name]` in bf16 and returns it in f64."""
    family, config, override = CASES[name]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(**config)
    config._attn_implementation = "eager"
    with torch.no_grad():
        model = getattr(transformers, f"{family}ForCausalLM")(config).double().eval()
        for tensor_name, tensor in model.named_parameters():
            if "norm" in tensor_name:
                tensor.normal_(1.0, 0.2)
            elif tensor.dim() == 1:
                tensor.normal_(0.0, 0.4)
            else:
                # Large enough that attention is far from uniform and logits are far apart.
                tensor.normal_(0.0, 1.5 / tensor.shape[1] ** 0.5)
            tensor.copy_(tensor.bfloat16())
    # In small files, so that there are several.
    stored = getattr(transformers, f"{family}ForCausalLM")(config).bfloat16()
    stored.load_state_dict(model.state_dict())
    stored.save_pretrained(directory, max_shard_size="1MB" if seed % 2 else "1GB")
    edit(directory, override)
    return model


def edit(directory, fields):
    """Changes fields of config.json; an ellipsis takes one away."""
    path = pathlib.Path(directory) / "config.json"
    config = json.loads(path.read_text())
    for field, value in fields.items():
        if value is ...:
            config.pop(field)
        else:
            config[field] = value
    path.write_text(json.dumps(config))
