//! What an engine holds of a GPU, against what `memory_ratio` allows. A program of its own: nobody else may allocate
//! meanwhile.
#![cfg(feature = "cuda")]

use minisgl_engine::config::{Device, EngineConfig};
use minisgl_engine::{DType, Engine};
use minisgl_kernels::Backend;
use minisgl_kernels::cuda::{Cuda, CudaOptions, num_devices};
use minisgl_tests::harness::{greedy, run};
use minisgl_tests::models::{ModelKind, TestModel, random_tokens};

/// The whole footprint, context and graphs included, is at most the share, before and after the largest batches ran;
/// and the share is used.
#[test]
fn memory_ratio_bounds_the_whole_footprint() {
    if num_devices() == 0 {
        println!("skipped: no GPU");
        return;
    }
    // Its own context and workspaces are part of the process's footprint.
    let probe = Cuda::open(CudaOptions::default()).expect("a GPU that can be used");
    let at_start = probe.memory();
    let in_use = at_start.total_bytes - at_start.free_bytes;
    println!("in use before the engine: {} MiB", in_use >> 20);
    if in_use > 1 << 30 {
        println!("skipped: others use the GPU");
        return;
    }
    let model = TestModel::with_head_dim(ModelKind::Qwen3, 128, DType::BF16, 1);
    for ratio in [0.03, 0.25, 0.9] {
        let config = EngineConfig {
            device: Device::Cuda(0),
            memory_ratio: Some(ratio),
            max_running_req: 300,
            cuda_graph_bs: Some((1..=300).step_by(13).collect()),
            ..EngineConfig::new(model.dir())
        };
        let engine = Engine::start(config, None).expect("a good model");
        let page_bytes = engine.info().page_size * engine.info().kv_bytes_per_token;
        let allowed = (at_start.total_bytes as f64 * ratio) as usize;
        let used = |when: &str| {
            let now = probe.memory();
            let used = now.total_bytes - now.free_bytes;
            println!("memory_ratio {ratio}, {when}: {} of {} MiB", used >> 20, allowed >> 20);
            assert!(used <= allowed, "memory_ratio {ratio}, {when}: {used} of {allowed} bytes are used");
            used
        };
        let at_rest = used("at rest");
        // What is set aside for graphs and for rounding of allocations stays small.
        assert!(allowed - at_rest <= (256 << 20) + page_bytes, "only {at_rest} of {allowed} bytes are used");
        let vocab = engine.info().vocab;
        let prompts = |len: usize| -> Vec<_> {
            (0..300).map(|i| greedy(&random_tokens(7, i, len, vocab), 30)).collect()
        };
        for len in [1, 60, 200] {
            assert_eq!(run(&engine, &prompts(len)).len(), 300);
            used("after the largest batches");
        }
    }
}
