//! Bad model directories: each gets an error that names the file, the field or tensor, and what was expected.

use std::fs;
use std::path::Path;

use minisgl_engine::config::{Device, EngineConfig};
use minisgl_engine::model::ModelSpec;
use minisgl_engine::{DType, Engine};
use minisgl_tests::models::{ModelKind, TestModel};
use serde_json::{Value, json};

fn start(dir: &Path) -> Result<Engine, String> {
    let config = EngineConfig {
        device: Device::Cpu,
        num_page_override: Some(16),
        threads: Some(1),
        ..EngineConfig::new(dir)
    };
    Engine::start(config, None).map_err(|error| error.to_string())
}

/// Asserts that the directory is refused with a message that contains every one of `parts`.
fn refused(dir: &Path, parts: &[&str]) {
    let error = start(dir).map(|_| ()).expect_err("a bad directory");
    for part in parts {
        assert!(error.contains(part), "'{part}' is not in: {error}");
    }
}

fn model(shards: usize) -> TestModel {
    TestModel::random(ModelKind::Llama, DType::BF16, shards, 5, &[])
}

fn edit_config(dir: &Path, edit: impl FnOnce(&mut Value)) {
    let path = dir.join("config.json");
    let mut config = serde_json::from_slice(&fs::read(&path).expect("config.json")).expect("JSON");
    edit(&mut config);
    fs::write(path, config.to_string()).expect("config.json");
}

/// Reads the single file's header and data, and writes them back after a change of the header.
fn edit_header(dir: &Path, edit: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    let path = dir.join("model.safetensors");
    let bytes = fs::read(&path).expect("model.safetensors");
    let len = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + len]).expect("JSON");
    edit(header.as_object_mut().expect("an object"));
    let header = header.to_string();
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &bytes[8 + len..]].concat();
    fs::write(path, file).expect("model.safetensors");
}

#[test]
fn a_good_directory_is_accepted() {
    for shards in [1, 3] {
        start(model(shards).dir()).expect("a good directory");
    }
}

#[test]
fn no_directory() {
    refused(Path::new("/no/such/model"), &["/no/such/model", "not a directory"]);
}

#[test]
fn no_config() {
    let model = model(1);
    fs::remove_file(model.dir().join("config.json")).expect("config.json");
    refused(model.dir(), &["config.json", "cannot read"]);
}

#[test]
fn config_is_not_json() {
    let model = model(1);
    fs::write(model.dir().join("config.json"), "{\"hidden_size\": ").expect("config.json");
    refused(model.dir(), &["config.json", "not valid JSON", "line 1"]);
    fs::write(model.dir().join("config.json"), "[1]").expect("config.json");
    refused(model.dir(), &["config.json", "a list", "expected an object"]);
}

#[test]
fn fields_of_the_configuration() {
    let cases: &[(&str, Value, &[&str])] = &[
        (
            "architectures",
            json!(["GPT2LMHeadModel"]),
            &["'GPT2LMHeadModel'", "LlamaForCausalLM", "Qwen3ForCausalLM"],
        ),
        ("architectures", Value::Null, &["architectures", "null"]),
        ("hidden_size", Value::Null, &["hidden_size", "whole number"]),
        ("hidden_size", json!(0), &["hidden_size", "is 0", "from 1 to"]),
        ("hidden_size", json!("64"), &["hidden_size", "\"64\""]),
        ("num_hidden_layers", json!(100_000), &["num_hidden_layers", "100000"]),
        ("num_key_value_heads", json!(3), &["num_key_value_heads", "is 3", "num_attention_heads (4)"]),
        ("head_dim", json!(15), &["head_dim", "15", "even"]),
        ("vocab_size", json!(-1), &["vocab_size", "-1"]),
        ("rms_norm_eps", json!("small"), &["rms_norm_eps", "\"small\""]),
        ("hidden_act", json!("relu"), &["hidden_act", "\"relu\"", "silu"]),
        ("dtype", json!("int8"), &["dtype", "\"int8\"", "bfloat16"]),
        ("tie_word_embeddings", json!(1), &["tie_word_embeddings", "true or false"]),
        ("eos_token_id", json!([1, "x"]), &["eos_token_id", "token id"]),
        (
            "rope_parameters",
            json!({"rope_type": "longrope"}),
            &["'longrope'", "default, linear, dynamic, yarn and llama3"],
        ),
        ("rope_parameters", json!({"type": "su"}), &["'su'"]),
        ("rope_parameters", json!({"rope_type": "linear"}), &["factor", "missing"]),
        ("rope_parameters", json!({"rope_type": "linear", "factor": -2}), &["factor", "-2"]),
        ("rope_parameters", json!({"partial_rotary_factor": 0.5}), &["partial_rotary_factor", "0.5"]),
        ("rope_parameters", json!([1]), &["rope_parameters", "expected an object"]),
    ];
    for (field, value, parts) in cases {
        let model = model(1);
        edit_config(model.dir(), |config| config[field] = value.clone());
        refused(model.dir(), parts);
    }
}

#[test]
fn windows_by_layer() {
    let model = TestModel::random(ModelKind::Qwen3, DType::BF16, 1, 5, &[]);
    edit_config(model.dir(), |config| config["layer_types"] = json!(["full_attention"]));
    refused(model.dir(), &["layer_types"]);
    edit_config(model.dir(), |config| {
        config["layer_types"] = json!(["full_attention", "x", "full_attention"]);
    });
    refused(model.dir(), &["layer_types"]);
}

#[test]
fn no_weights() {
    let model = model(1);
    fs::remove_file(model.dir().join("model.safetensors")).expect("the weights");
    refused(model.dir(), &["model.safetensors", "model.safetensors.index.json"]);
}

#[test]
fn missing_shard() {
    let model = model(3);
    fs::remove_file(model.dir().join("model-00002-of-00003.safetensors")).expect("a shard");
    refused(model.dir(), &["model-00002-of-00003.safetensors", "is missing", "3 files"]);
}

#[test]
fn index_that_lies() {
    let path = |model: &TestModel| model.dir().join("model.safetensors.index.json");
    let edit = |model: &TestModel, edit: &dyn Fn(&mut Value)| {
        let mut index = serde_json::from_slice(&fs::read(path(model)).expect("the index")).expect("JSON");
        edit(&mut index);
        fs::write(path(model), index.to_string()).expect("the index");
    };
    let model = model(2);
    edit(&model, &|index| index["weight_map"]["model.extra"] = json!("model-00001-of-00002.safetensors"));
    refused(model.dir(), &["no file holds tensor model.extra"]);
    edit(&model, &|index| index["weight_map"]["model.extra"] = json!("../../etc/passwd"));
    refused(model.dir(), &["../../etc/passwd", "without a folder"]);
    edit(&model, &|index| index["weight_map"] = json!(3));
    refused(model.dir(), &["weight_map", "a number"]);
}

#[test]
fn truncated_file() {
    let model = model(1);
    let path = model.dir().join("model.safetensors");
    let bytes = fs::read(&path).expect("the weights");
    for len in [0, 7, 8, 100, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&path, &bytes[..len]).expect("the weights");
        refused(model.dir(), &["model.safetensors", "not a whole safetensors file"]);
    }
}

#[test]
fn missing_tensor() {
    let model = model(1);
    let name = "model.layers.1.self_attn.k_proj.weight";
    edit_header(model.dir(), |header| {
        let tensor = header.remove(name).expect("the tensor");
        header.insert("model.layers.1.self_attn.k.weight".into(), tensor);
    });
    refused(model.dir(), &[name, "is missing from", "model.safetensors"]);
}

#[test]
fn unexpected_tensor() {
    // Biases that config.json does not announce must not be left out in silence.
    let model = TestModel::random(ModelKind::Qwen2, DType::BF16, 1, 5, &[]);
    edit_config(model.dir(), |config| config["architectures"] = json!(["LlamaForCausalLM"]));
    refused(model.dir(), &["9 tensors", "LlamaForCausalLM", "model.layers.0.self_attn.k_proj.bias"]);
}

/// A field that is left out has the value that transformers gives it, which for some is another than null.
#[test]
fn what_a_configuration_leaves_out() {
    let spec = |kind, edit: &dyn Fn(&mut Value)| {
        let model = TestModel::random(kind, DType::BF16, 1, 5, &[]);
        edit_config(model.dir(), edit);
        ModelSpec::read(model.dir()).expect("a good config.json")
    };
    let remove = |name: &'static str| {
        move |config: &mut Value| drop(config.as_object_mut().expect("an object").remove(name))
    };
    let null = |name: &'static str| move |config: &mut Value| config[name] = Value::Null;

    assert_eq!(spec(ModelKind::Mistral, &remove("sliding_window")).windows, [Some(4096); 3]);
    assert_eq!(spec(ModelKind::Mistral, &null("sliding_window")).windows, [None; 3]);
    assert_eq!(spec(ModelKind::Qwen3, &remove("sliding_window")).windows, [None, None, Some(4096)]);
    assert_eq!(spec(ModelKind::Qwen3, &null("sliding_window")).windows, [None; 3]);
    assert_eq!(spec(ModelKind::Qwen3, &remove("head_dim")).head_dim, 128);
    assert_eq!(spec(ModelKind::Llama, &remove("head_dim")).head_dim, 16);
    assert_eq!(spec(ModelKind::Llama, &remove("num_key_value_heads")).num_kv_heads, 4);
    let eight = |name| {
        move |config: &mut Value| {
            config["num_attention_heads"] = json!(8);
            drop(config.as_object_mut().expect("an object").remove(name));
        }
    };
    assert_eq!(spec(ModelKind::Mistral, &eight("num_key_value_heads")).num_kv_heads, 8);

    // Biases are part of Qwen2 and no part of Mistral, whatever the fields of other families say.
    let bias = |on: bool| {
        move |config: &mut Value| (config["attention_bias"], config["mlp_bias"]) = (json!(on), json!(on))
    };
    for (kind, on, expected) in [
        (ModelKind::Qwen2, false, (true, false, false)),
        (ModelKind::Qwen2, true, (true, false, false)),
        (ModelKind::Mistral, true, (false, false, false)),
        (ModelKind::Qwen3, true, (true, true, false)),
        (ModelKind::Llama, true, (true, true, true)),
        (ModelKind::Llama, false, (false, false, false)),
    ] {
        let spec = spec(kind, &bias(on));
        assert_eq!((spec.qkv_bias, spec.o_bias, spec.mlp_bias), expected, "{kind:?} {on}");
    }
}

#[test]
fn wrong_shape_and_dtype() {
    let model = model(1);
    let name = "model.norm.weight";
    edit_header(model.dir(), |header| header[name]["shape"] = json!([32, 2]));
    refused(model.dir(), &[name, "[32, 2]", "[64]"]);
    edit_header(model.dir(), |header| {
        header[name]["shape"] = json!([64]);
        header[name]["dtype"] = json!("I16");
    });
    refused(model.dir(), &[name, "I16", "BF16, F16 or F32"]);
}

/// A dtype apart from the checkpoint's is converted on load.
#[test]
fn every_dtype_loads_as_every_other() {
    for stored in DType::ALL {
        let model = TestModel::random(ModelKind::Mistral, stored, 1, 5, &[]);
        for dtype in DType::ALL.map(Some).into_iter().chain([None]) {
            let config = EngineConfig {
                dtype,
                device: Device::Cpu,
                num_page_override: Some(16),
                threads: Some(1),
                ..EngineConfig::new(model.dir())
            };
            let engine = Engine::start(config, None).expect("a good directory");
            assert_eq!(engine.info().dtype, dtype.unwrap_or(stored));
        }
    }
}

#[test]
fn settings_out_of_range() {
    type Edit = fn(&mut EngineConfig);
    let cases: &[(Edit, &str)] = &[
        (|c| c.page_size = 0, "page_size is 0, expected a power of two from 1 to 256"),
        (|c| c.page_size = 24, "page_size is 24"),
        (|c| c.page_size = 512, "page_size is 512"),
        (|c| c.max_running_req = 0, "max_running_req is 0, expected 1 to"),
        (|c| c.max_extend_tokens = Some(0), "max_extend_tokens is 0"),
        (|c| c.num_page_override = Some(0), "num_page_override is 0"),
        (|c| c.max_seq_len_override = Some(1), "max_seq_len_override is 1"),
        (|c| c.memory_ratio = Some(0.0), "memory_ratio is 0"),
        (|c| c.memory_ratio = Some(1.5), "memory_ratio is 1.5"),
        (|c| c.memory_ratio = Some(f64::NAN), "memory_ratio is NaN"),
        (|c| c.threads = Some(0), "threads is 0"),
        (|c| c.cuda_graph_bs = Some(vec![1, 999]), "cuda_graph_bs is 999, expected 1 to 256"),
        (|c| c.attention_backend = "fa,fi".parse().expect("a name"), "'fa,fi' needs a CUDA device"),
    ];
    let model = model(1);
    for (edit, part) in cases {
        let mut config = EngineConfig { device: Device::Cpu, ..EngineConfig::new(model.dir()) };
        edit(&mut config);
        let error = Engine::start(config, None).map(|_| ()).expect_err(part).to_string();
        assert!(error.contains(part), "'{part}' is not in: {error}");
    }
}
