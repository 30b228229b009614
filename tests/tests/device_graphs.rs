//! Decode steps replayed from CUDA graphs, against the oracle: graphs for every batch, for odd sizes, for small batches
//! only, and none.
#![cfg(feature = "cuda")]

use std::sync::atomic::{AtomicBool, Ordering};

use minisgl_engine::config::{Device, EngineConfig};
use minisgl_engine::request::Request;
use minisgl_engine::{DType, Engine};
use minisgl_kernels::cuda::{Cuda, CudaOptions, num_devices};
use minisgl_kernels::{Backend, KernelError};
use minisgl_reference::Decoder;
use minisgl_tests::harness::{Generated, greedy, run, seed};
use minisgl_tests::models::{ModelKind, TestModel, precision, random_tokens};

const MAX_TOKENS: usize = 16;

/// Twelve prompts that end after different numbers of tokens, so that the batch shrinks through all sizes.
fn requests(seed: u64, vocab: usize) -> Vec<Request> {
    let prompt = |i: usize| random_tokens(seed, i as u32, 1 + 9 * i, vocab);
    (0..12).map(|i| greedy(&prompt(i), MAX_TOKENS - i)).collect()
}

/// How far below the largest logit of f64 a token's may be: two logits move, each by twice what a naive decoder in the
/// dtype is off at worst.
fn slack(model: &TestModel, dtype: DType, requests: &[Request], outputs: &[Generated]) -> f64 {
    let naive = Decoder { precision: precision(dtype), ..model.oracle.clone() };
    let mut error: f64 = 0.0;
    for (request, output) in requests.iter().zip(outputs) {
        let tokens = [&request.token_ids[..], &output.tokens].concat();
        let (exact, rounded) = (model.oracle.logits(&tokens), naive.logits(&tokens));
        let distances = exact.iter().flatten().zip(rounded.iter().flatten()).map(|(a, b)| (a - b).abs());
        error = distances.fold(error, f64::max);
    }
    4.0 * error
}

fn check(kind: ModelKind, dtype: DType, head_dim: usize) {
    if num_devices() == 0 {
        println!("skipped: no GPU");
        return;
    }
    let seed = seed();
    let model = TestModel::with_head_dim(kind, head_dim, dtype, seed);
    let requests = requests(seed, model.oracle.spec.vocab);
    let config = |cuda_graph_bs: Option<Vec<usize>>, cuda_graph_max_bs| EngineConfig {
        dtype: Some(dtype),
        device: Device::Cuda(0),
        num_page_override: Some(512),
        max_running_req: 12,
        cuda_graph_bs,
        cuda_graph_max_bs,
        own_linear_kernels: false,
        ..EngineConfig::new(model.dir())
    };
    let generate = |config| run(&Engine::start(config, None).expect("a good model"), &requests);
    let eager = generate(config(Some(Vec::new()), None));
    let slack = slack(&model, dtype, &requests, &eager);
    let variants = [
        ("none", eager),
        ("all", generate(config(None, None))),
        ("3 and 7", generate(config(Some(vec![3, 7]), None))),
        ("up to 5", generate(config(None, Some(5)))),
        ("12 alone", generate(config(Some(vec![12]), None))),
    ];
    for (name, outputs) in &variants {
        for (request, output) in requests.iter().zip(outputs) {
            assert_eq!(output.tokens.len(), request.params.max_tokens);
            let gaps = model.oracle.greedy_gaps(&request.token_ids, &output.tokens);
            let len = request.token_ids.len();
            assert!(
                gaps.iter().all(|&gap| gap <= slack),
                "{kind:?} {dtype}, graphs: {name}, prompt of {len}: {gaps:?} below the best, slack {slack}"
            );
        }
    }
}

/// A batch that is smaller than its graph is padded to the graph's shape.
///
/// Without `pad_decode(&mut batch.inputs, size)` in `Runner::launch` the inputs are laid out for another number of
/// sequences than the graph reads.
#[test]
fn fault_13_inputs_have_the_shape_of_the_graph() {
    check(ModelKind::Llama, DType::F32, 64);
}

#[test]
fn llama_bf16() {
    check(ModelKind::Llama, DType::BF16, 64);
}

#[test]
fn mistral_f16() {
    check(ModelKind::Mistral, DType::F16, 96);
}

#[test]
fn qwen2_bf16() {
    check(ModelKind::Qwen2, DType::BF16, 128);
}

#[test]
fn qwen3_bf16() {
    check(ModelKind::Qwen3, DType::BF16, 128);
}

#[test]
fn qwen3_f16_plain_kernels() {
    check(ModelKind::Qwen3, DType::F16, 24);
}

/// Backends that are opened and dropped on other threads must neither spoil captures nor end the process.
///
/// Break: a `Handle` that is created in `Blas::new` and destroyed with it.
#[test]
fn captures_survive_backends_that_come_and_go() {
    if num_devices() == 0 {
        println!("skipped: no GPU");
        return;
    }
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    drop(Cuda::open(CudaOptions::default()).expect("a GPU that can be used"));
                }
            });
        }
        let outcome = capture_many();
        is_over.store(true, Ordering::Relaxed);
        outcome.expect("graphs, and replays of them");
    });
}

fn capture_many() -> Result<(), KernelError> {
    let mut cuda = Cuda::open(CudaOptions::default())?;
    let mut tensor = |rows, cols| cuda.tensor("test tensor", DType::BF16, rows, cols);
    let (x, weight, mut out) = (tensor(8, 64)?, tensor(64, 64)?, tensor(8, 64)?);
    // Once outside of a capture, where the first call loads what it needs.
    cuda.linear(&mut out, &x, &weight, None, 8)?;
    for _ in 0..300 {
        let graph =
            cuda.capture(&mut |cuda| (0..20).try_for_each(|_| cuda.linear(&mut out, &x, &weight, None, 8)))?;
        cuda.replay(&graph)?;
    }
    cuda.synchronize()
}
