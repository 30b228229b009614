//! The engine against the full-recompute oracle, and against itself: an output depends on nothing but its request.

use minisgl_engine::config::{CacheType, EngineConfig};
use minisgl_engine::request::{FinishReason, Request, RequestParams};
use minisgl_engine::{DType, Engine};
use minisgl_reference::{Decoder, Precision};
use minisgl_tests::harness::{Generated, device, greedy, run, seed};
use minisgl_tests::models::{ModelKind, TestModel, random_tokens};

const MAX_TOKENS: usize = 24;

fn config(model: &TestModel, dtype: DType) -> EngineConfig {
    EngineConfig {
        dtype: Some(dtype),
        device: device(),
        num_page_override: Some(4096),
        threads: Some(2),
        own_linear_kernels: false,
        ..EngineConfig::new(model.dir())
    }
}

/// Prompts of many lengths; some are prefixes of others, some are equal.
fn prompts(model: &TestModel, seed: u64) -> Vec<Vec<u32>> {
    let vocab = model.oracle.spec.vocab;
    let base = random_tokens(seed, 1, 150, vocab);
    let mut prompts: Vec<Vec<u32>> =
        [1, 2, 15, 16, 17, 33, 64, 100, 150].iter().map(|&len| base[..len].to_vec()).collect();
    prompts.push(base[..64].to_vec());
    prompts.push([&base[..48], &random_tokens(seed, 2, 30, vocab)].concat());
    prompts.push(random_tokens(seed, 3, 77, vocab));
    prompts
}

/// Half of the requests greedy, half sampled with own seeds and filters.
fn mixed_requests(model: &TestModel, seed: u64) -> Vec<Request> {
    let mut requests: Vec<_> = prompts(model, seed).iter().map(|prompt| greedy(prompt, MAX_TOKENS)).collect();
    for (i, request) in requests.iter_mut().enumerate().filter(|(i, _)| i % 2 == 1) {
        let RequestParams { max_tokens, ignore_eos, .. } = request.params;
        request.params = RequestParams {
            max_tokens,
            ignore_eos,
            temperature: 0.9,
            top_k: if i % 4 == 1 { 20 } else { -1 },
            top_p: if i % 3 == 0 { 0.8 } else { 1.0 },
            min_p: if i % 5 == 0 { 0.05 } else { 0.0 },
            seed: i as u64,
            presence_penalty: if i == 7 { 0.5 } else { 0.0 },
            frequency_penalty: if i == 9 { 0.3 } else { 0.0 },
            repetition_penalty: if i == 11 { 1.2 } else { 1.0 },
            ..RequestParams::default()
        };
    }
    requests
}

fn generate(config: EngineConfig, requests: &[Request]) -> Vec<Generated> {
    let engine = Engine::start(config, None).expect("a good model");
    run(&engine, requests)
}

fn tokens(outputs: &[Generated]) -> Vec<&[u32]> {
    outputs.iter().map(|output| output.tokens.as_slice()).collect()
}

fn equals_oracle(kind: ModelKind, shards: usize) {
    let seed = seed();
    let model = TestModel::random(kind, DType::F32, shards, seed, &[]);
    let prompts = prompts(&model, seed);
    let requests: Vec<_> = prompts.iter().map(|prompt| greedy(prompt, MAX_TOKENS)).collect();
    let outputs = generate(config(&model, DType::F32), &requests);
    for (prompt, output) in prompts.iter().zip(&outputs) {
        assert_eq!(output.tokens.len(), MAX_TOKENS);
        assert_eq!(output.reason, FinishReason::Length);
        let gaps = model.oracle.greedy_gaps(prompt, &output.tokens);
        if gaps.iter().any(|&gap| gap > 0.0) {
            // Two logits may be closer than f32 tells apart: as close as a naive f32 decoder errs, twice for a real
            // kernel and twice because two logits move.
            let slack = 4.0 * f32_error(&model, prompt, &output.tokens);
            assert!(gaps.iter().all(|&gap| gap <= slack), "{kind:?}, {prompt:?}: {gaps:?}, slack {slack}");
        }
    }
}

/// Largest error of a logit when every intermediate is rounded to f32.
fn f32_error(model: &TestModel, prompt: &[u32], output: &[u32]) -> f64 {
    let naive = Decoder { precision: Precision::F32, ..model.oracle.clone() };
    let tokens = [prompt, output].concat();
    let (exact, rounded) = (model.oracle.logits(&tokens), naive.logits(&tokens));
    exact.iter().flatten().zip(rounded.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn llama_equals_the_oracle() {
    equals_oracle(ModelKind::Llama, 1);
}

#[test]
fn mistral_equals_the_oracle() {
    equals_oracle(ModelKind::Mistral, 3);
}

#[test]
fn qwen2_equals_the_oracle() {
    equals_oracle(ModelKind::Qwen2, 2);
}

#[test]
fn qwen3_equals_the_oracle() {
    equals_oracle(ModelKind::Qwen3, 1);
}

/// Every setting that must not change an output, one at a time and some together.
fn variants(base: &EngineConfig) -> Vec<(&'static str, EngineConfig)> {
    let with = |change: &dyn Fn(&mut EngineConfig)| {
        let mut config = base.clone();
        change(&mut config);
        config
    };
    vec![
        ("page_size 1", with(&|c| c.page_size = 1)),
        ("page_size 4", with(&|c| c.page_size = 4)),
        ("page_size 256", with(&|c| (c.page_size, c.num_page_override) = (256, Some(64)))),
        ("chunks of 1", with(&|c| c.max_extend_tokens = Some(1))),
        ("chunks of 7", with(&|c| c.max_extend_tokens = Some(7))),
        ("chunks of 64, page_size 4", with(&|c| (c.max_extend_tokens, c.page_size) = (Some(64), 4))),
        ("no prefix cache", with(&|c| c.cache_type = CacheType::Naive)),
        ("one at a time", with(&|c| c.max_running_req = 1)),
        ("three at a time", with(&|c| c.max_running_req = 3)),
        ("overlap", with(&|c| c.overlap = Some(true))),
        ("no overlap", with(&|c| c.overlap = Some(false))),
        (
            "overlap, chunks of 5, no cache",
            with(&|c| {
                (c.overlap, c.max_extend_tokens, c.cache_type) = (Some(true), Some(5), CacheType::Naive);
            }),
        ),
        // On a device without graphs these change nothing.
        ("no graphs", with(&|c| c.cuda_graph_bs = Some(Vec::new()))),
        ("graphs of 3 and 7", with(&|c| c.cuda_graph_bs = Some(vec![3, 7]))),
        ("graphs up to 5, no overlap", with(&|c| (c.cuda_graph_max_bs, c.overlap) = (Some(5), Some(false)))),
        ("one thread", with(&|c| c.threads = Some(1))),
        ("five threads", with(&|c| c.threads = Some(5))),
    ]
}

fn does_not_depend_on_settings(kind: ModelKind, dtype: DType) {
    let seed = seed();
    let model = TestModel::random(kind, dtype, 1, seed, &[]);
    let requests = mixed_requests(&model, seed);
    let base = config(&model, dtype);
    let expected = generate(base.clone(), &requests);
    for (name, variant) in variants(&base) {
        let outputs = generate(variant, &requests);
        assert_eq!(tokens(&outputs), tokens(&expected), "{kind:?} {dtype}: {name}");
    }
}

#[test]
fn llama_bf16_does_not_depend_on_settings() {
    does_not_depend_on_settings(ModelKind::Llama, DType::BF16);
}

#[test]
fn mistral_f16_does_not_depend_on_settings() {
    does_not_depend_on_settings(ModelKind::Mistral, DType::F16);
}

#[test]
fn qwen2_f32_does_not_depend_on_settings() {
    does_not_depend_on_settings(ModelKind::Qwen2, DType::F32);
}

#[test]
fn qwen3_bf16_does_not_depend_on_settings() {
    does_not_depend_on_settings(ModelKind::Qwen3, DType::BF16);
}

/// A pool that holds a fraction of the sequences: retraction is forced and must not show.
#[test]
fn preemption_does_not_show() {
    let seed = seed();
    for kind in ModelKind::ALL {
        let model = TestModel::random(kind, DType::BF16, 1, seed, &[]);
        let requests = mixed_requests(&model, seed);
        let base = config(&model, DType::BF16);
        let expected = generate(base.clone(), &requests);
        for (overlap, cache_type) in [(true, CacheType::Radix), (false, CacheType::Naive)] {
            // 45 pages of 4 hold the longest request (174 tokens) and little beside it.
            let tight = EngineConfig {
                page_size: 4,
                num_page_override: Some(45),
                overlap: Some(overlap),
                cache_type,
                ..base.clone()
            };
            let engine = Engine::start(tight, None).expect("a good model");
            let outputs = run(&engine, &requests);
            assert_eq!(tokens(&outputs), tokens(&expected), "{kind:?} overlap {overlap} {cache_type:?}");
            let preemptions = engine.stats().counters.preemptions;
            assert!(preemptions > 0, "{kind:?}: the pool was large enough after all");
        }
    }
}

/// Each request alone in its own call equals the same request among the others.
#[test]
fn neighbours_do_not_show() {
    let seed = seed();
    let model = TestModel::random(ModelKind::Qwen3, DType::BF16, 1, seed, &[]);
    let requests = mixed_requests(&model, seed);
    let together = generate(config(&model, DType::BF16), &requests);
    let engine = Engine::start(config(&model, DType::BF16), None).expect("a good model");
    for (i, request) in requests.iter().enumerate() {
        let alone = run(&engine, std::slice::from_ref(request));
        assert_eq!(alone[0].tokens, together[i].tokens, "request {i}");
    }
}

/// The second call finds the first one's prompts and outputs in the cache, and gives the same.
#[test]
fn a_warm_cache_does_not_show() {
    let seed = seed();
    let model = TestModel::random(ModelKind::Llama, DType::BF16, 1, seed, &[]);
    let requests = mixed_requests(&model, seed);
    let engine = Engine::start(config(&model, DType::BF16), None).expect("a good model");
    let cold = run(&engine, &requests);
    let warm = run(&engine, &requests);
    assert_eq!(tokens(&warm), tokens(&cold));
    assert!(warm.iter().map(|output| output.num_cached_tokens).sum::<usize>() > 0);
}
