//! The bundled model against greedy continuations that Hugging Face transformers computed in f32.

use std::path::PathBuf;

use minisgl_engine::config::EngineConfig;
use minisgl_engine::request::{Request, RequestParams};
use minisgl_engine::{DType, Engine};
use minisgl_reference::{Activation, Decoder, DecoderSpec, Precision, RopeScaling, RopeSpec, Weights};
use minisgl_tests::harness::{Generated, device, run};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    prompt_ids: Vec<u32>,
    greedy_ids: Vec<u32>,
    ended_by_eos: bool,
    /// The five best log probabilities of the first eight steps.
    top5_logprobs: Vec<Vec<(u32, f32)>>,
    /// Smallest distance between best and second-best logit on the way.
    min_margin: f64,
}

fn model_dir() -> PathBuf {
    minisgl_tests::models::bundled()
}

fn goldens() -> Vec<Golden> {
    let text = std::fs::read_to_string(model_dir().join("goldens.json")).expect("goldens.json");
    serde_json::from_str(&text).expect("goldens.json")
}

/// Generates as many tokens as each golden has, with the five best log probabilities.
fn generate(dtype: DType, goldens: &[Golden]) -> Vec<Generated> {
    let config = EngineConfig {
        dtype: Some(dtype),
        device: device(),
        num_page_override: Some(512),
        ..EngineConfig::new(model_dir())
    };
    let engine = Engine::start(config, None).expect("the bundled model");
    let request = |golden: &Golden| Request {
        token_ids: golden.prompt_ids.clone(),
        params: RequestParams {
            max_tokens: golden.greedy_ids.len(),
            ignore_eos: true,
            logprobs: Some(5),
            ..RequestParams::default()
        },
    };
    run(&engine, &goldens.iter().map(request).collect::<Vec<_>>())
}

/// Token for token, and the log probabilities within 1e-3.
#[test]
fn f32_equals_transformers() {
    let goldens = goldens();
    assert_eq!(goldens.len(), 13);
    for (golden, output) in goldens.iter().zip(generate(DType::F32, &goldens)) {
        assert_eq!(output.tokens, golden.greedy_ids, "prompt {:?}", golden.prompt_ids);
        for (step, (expected, found)) in golden.top5_logprobs.iter().zip(&output.logprobs).enumerate() {
            assert!((found.chosen - expected[0].1).abs() < 1e-3, "step {step}: {found:?} {expected:?}");
            for ((id, logprob), (found_id, found_logprob)) in expected.iter().zip(&found.top) {
                assert_eq!(id, found_id, "step {step}");
                assert!((logprob - found_logprob).abs() < 1e-3, "step {step}: {logprob} {found_logprob}");
            }
        }
        // Margins are differences of logits, and so of log probabilities.
        let margin =
            output.logprobs.iter().map(|l| f64::from(l.top[0].1 - l.top[1].1)).fold(f64::MAX, f64::min);
        assert!((margin - golden.min_margin).abs() < 1e-3, "{margin} {}", golden.min_margin);
    }
}

/// EOS ends an output and is not part of it.
#[test]
fn eos_ends_the_goldens_that_end() {
    let goldens = goldens();
    let config = EngineConfig { device: device(), dtype: Some(DType::F32), ..EngineConfig::new(model_dir()) };
    let engine = Engine::start(config, None).expect("the bundled model");
    let request = |golden: &Golden| Request {
        token_ids: golden.prompt_ids.clone(),
        params: RequestParams { max_tokens: golden.greedy_ids.len(), ..RequestParams::default() },
    };
    let outputs = run(&engine, &goldens.iter().map(request).collect::<Vec<_>>());
    for (golden, output) in goldens.iter().zip(outputs) {
        let end = golden.greedy_ids.len() - usize::from(golden.ended_by_eos);
        assert_eq!(output.tokens, golden.greedy_ids[..end]);
    }
}

/// In a 16-bit dtype the tokens equal those of f32 up to the first step whose margin between best and second-best
/// logit is within what rounding can move. What rounding moves is measured: a naive decoder in the same dtype
/// against f64 on the same tokens, doubled (a real kernel may round as badly twice), and doubled again because two
/// logits move.
#[test]
fn sixteen_bits_equal_f32_up_to_rounding() {
    let goldens = goldens();
    let exact = generate(DType::F32, &goldens);
    let naive = |precision| Decoder { spec: spec(), weights: weights(), precision };
    let oracle = naive(Precision::F64);
    for (dtype, precision) in [(DType::BF16, Precision::Bf16), (DType::F16, Precision::F16)] {
        let rounded = naive(precision);
        let mut compared = 0;
        for ((golden, exact), output) in goldens.iter().zip(&exact).zip(generate(dtype, &goldens)) {
            // The naive decoders are slow.
            let steps = golden.greedy_ids.len().min(16);
            if golden.prompt_ids.len() > 100 {
                continue;
            }
            let tokens = [&golden.prompt_ids[..], &golden.greedy_ids[..steps]].concat();
            let logits = oracle.logits(&tokens).into_iter().zip(rounded.logits(&tokens));
            let distance = |(a, b): (Vec<f64>, Vec<f64>)| {
                a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
            };
            let error = logits.skip(golden.prompt_ids.len() - 1).map(distance).fold(0.0, f64::max);
            for (step, logprobs) in exact.logprobs.iter().enumerate().take(steps) {
                if f64::from(logprobs.top[0].1 - logprobs.top[1].1) <= 4.0 * error {
                    break;
                }
                let (found, expected) = (output.tokens[step], exact.tokens[step]);
                assert_eq!(found, expected, "{dtype} step {step} of {:?}", golden.prompt_ids);
                compared += 1;
            }
        }
        println!("{dtype}: {compared} tokens compared before the first small margin of each prompt");
        assert!(compared >= goldens.len(), "{dtype}: only {compared} tokens could be compared");
    }
}

fn spec() -> DecoderSpec {
    DecoderSpec {
        hidden: 256,
        layers: 6,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        ffn: 768,
        vocab: 4096,
        eps: 1e-5,
        rope: RopeSpec {
            head_dim: 64,
            theta: 500_000.0,
            scaling: RopeScaling::Llama3 {
                factor: 32.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position_embeddings: 8192,
            },
        },
        qkv_bias: false,
        qk_norm: false,
        tied: true,
        activation: Activation::Silu,
        windows: vec![None; 6],
    }
}

fn weights() -> Weights {
    let bytes = std::fs::read(model_dir().join("model.safetensors")).expect("model.safetensors");
    let header_bytes = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let header: serde_json::Value =
        serde_json::from_slice(&bytes[8..8 + header_bytes]).expect("a JSON header");
    Weights::collect(&spec(), |name, _| {
        let offset = |i: usize| header[name]["data_offsets"][i].as_u64().expect("an offset") as usize;
        assert_eq!(header[name]["dtype"], "BF16", "{name}");
        DType::BF16.widen(&bytes[8 + header_bytes..][offset(0)..offset(1)])
    })
}
