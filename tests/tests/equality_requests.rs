//! An output depends on nothing but its request, also with stop strings, several completions of one prompt, and
//! neighbours that are given up while they run: the bundled model from tokens to text, under every setting.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use minisgl_llm::{
    CacheType, DType, Device, Engine, EngineConfig, FinishReason, LLM, LLMParts, Output, SamplingParams,
    Tokenizer,
};
use minisgl_tests::harness::{device, seed};
use minisgl_tests::models::{noise, random_tokens};

/// From the package's directory, where Cargo starts a test.
const MODEL: &str = "../models/rust-docs-6m";
const VOCAB: usize = 4090;
const MAX_TOKENS: usize = 20;

fn base() -> EngineConfig {
    EngineConfig {
        // On CUDA a row's last bits may depend on the batch, which in 16 bits changes tokens.
        dtype: Some(if device() == Device::Cpu { DType::BF16 } else { DType::F32 }),
        device: device(),
        num_page_override: Some(1024),
        max_seq_len_override: Some(256),
        threads: Some(2),
        own_linear_kernels: false,
        ..EngineConfig::new(MODEL)
    }
}

fn llm(config: EngineConfig) -> LLM {
    let tokenizer = Tokenizer::from_file(format!("{MODEL}/tokenizer.json")).expect("a tokenizer");
    let engine = Engine::start(config, None).expect("a good model");
    LLM::from_parts(LLMParts { tokenizer: Some(Arc::new(tokenizer)), ..LLMParts::new(engine) })
}

type Requests = (Vec<Vec<u32>>, Vec<SamplingParams>);

/// Requests without stop strings: greedy and sampled, alone and with several completions; some prompts share beginnings,
/// two are equal.
fn free_requests(seed: u64) -> Requests {
    let shared = random_tokens(seed, 0, 60, VOCAB);
    let lens = [1, 5, 16, 17, 33, 48, 60, 60];
    let prompts = lens.iter().zip(1..).map(|(&len, stream)| {
        let end = if len == 60 { Vec::new() } else { random_tokens(seed, stream, 3, VOCAB) };
        [&shared[..len], &end].concat()
    });
    let params = (0..lens.len()).map(|i| SamplingParams {
        temperature: if i % 2 == 0 { 0.0 } else { 1.0 },
        top_p: if i % 4 == 1 { 0.9 } else { 1.0 },
        max_tokens: MAX_TOKENS,
        ignore_eos: true,
        seed: Some(seed ^ i as u64),
        n: if i % 4 == 3 { 3 } else { 1 },
        frequency_penalty: if i == 5 { 0.4 } else { 0.0 },
        ..SamplingParams::default()
    });
    (prompts.collect(), params.collect())
}

/// Gives every other request a stop string out of the middle of what it says freely.
fn with_stop_strings((prompts, mut params): Requests, free: &[Output], seed: u64) -> Requests {
    for (i, output) in free.iter().enumerate() {
        let chars: Vec<char> = output.text.chars().collect();
        if i % 3 == 2 || chars.len() < 8 {
            continue;
        }
        let at = (noise(seed, 1000 + i as u32, 1)[0].abs() * (chars.len() - 4) as f32) as usize;
        params[i].stop = vec!["never said".into(), chars[at..at + 4].iter().collect()];
    }
    (prompts, params)
}

/// What must not depend on anything but the request: all completions of each.
fn essence(outputs: &[Output]) -> Vec<Vec<(String, Vec<u32>, FinishReason)>> {
    let of = |output: &Output| {
        output.completions().map(|c| (c.text.clone(), c.token_ids.clone(), c.finish_reason)).collect()
    };
    outputs.iter().map(of).collect()
}

/// Runs the requests while other threads start neighbours and give them up: some dropped, some aborted by hand.
fn generate_among_aborts(llm: &LLM, (prompts, params): &Requests, seed: u64) -> Vec<Output> {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..2u32 {
            let is_over = &is_over;
            scope.spawn(move || {
                let mut number = 0;
                while !is_over.load(Ordering::Relaxed) {
                    number += 1;
                    // The same beginning as the others': its pages are theirs.
                    let len = 1 + (number as usize * 7 + thread as usize * 31) % 60;
                    let prompt = random_tokens(seed, 0, 60, VOCAB)[..len].to_vec();
                    let params = SamplingParams {
                        temperature: 1.0,
                        ignore_eos: true,
                        max_tokens: 100,
                        ..SamplingParams::default()
                    };
                    let mut stream = llm.stream(prompt, params).expect("a valid request");
                    for _ in 0..number % 4 {
                        stream.next();
                    }
                    if number % 2 == 0 {
                        stream.abort_handle().abort();
                        stream.into_output().expect("what there was until then");
                    }
                }
            });
        }
        let outputs = llm.generate(prompts, params).expect("outputs");
        is_over.store(true, Ordering::Relaxed);
        outputs
    })
}

type Edit = fn(&mut EngineConfig);

const VARIANTS: [(&str, Edit); 9] = [
    ("as it is", |_| {}),
    ("pages of 1", |c| (c.page_size, c.num_page_override) = (1, Some(8192))),
    ("pages of 256", |c| (c.page_size, c.num_page_override) = (256, Some(64))),
    ("chunks of 7", |c| c.max_extend_tokens = Some(7)),
    ("chunks of 1, pages of 4", |c| (c.max_extend_tokens, c.page_size) = (Some(1), 4)),
    ("no prefix cache", |c| c.cache_type = CacheType::Naive),
    ("three at a time", |c| c.max_running_req = 3),
    ("the other overlap", |c| c.overlap = Some(!c.overlap.unwrap_or(false))),
    // 24 pages of 4 hold the longest request and little beside it.
    ("too few pages", |c| (c.page_size, c.num_page_override, c.overlap) = (4, Some(24), Some(true))),
];

#[test]
fn stop_strings_completions_and_aborted_neighbours_do_not_show() {
    let seed = seed();
    let first = llm(base());
    let free = free_requests(seed);
    let free_outputs = first.generate(&free.0, &free.1).expect("outputs");
    let requests = with_stop_strings(free, &free_outputs, seed);
    let expected = essence(&first.generate(&requests.0, &requests.1).expect("outputs"));
    let num_stopped = expected.iter().filter(|request| request[0].2 == FinishReason::Stop).count();
    assert!(num_stopped >= 3, "{num_stopped} requests met their stop string");
    for (output, params) in expected.iter().zip(&requests.1) {
        assert_eq!(output.len(), params.n);
        for (text, _, _) in output {
            assert!(params.stop.iter().all(|stop| !text.contains(stop)), "{:?} in {text:?}", params.stop);
        }
    }
    for (name, edit) in VARIANTS {
        let mut config = base();
        edit(&mut config);
        let is_tight = config.num_page_override == Some(24);
        let llm = llm(config);
        for among_aborts in [false, true] {
            let outputs = match among_aborts {
                false => llm.generate(&requests.0, &requests.1).expect("outputs"),
                true => generate_among_aborts(&llm, &requests, seed),
            };
            let found = essence(&outputs);
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                assert_eq!(found, expected, "{name}, among aborts: {among_aborts}, request {i}");
            }
        }
        let preemptions = llm.stats().counters.preemptions;
        assert!(!is_tight || preemptions > 0, "the pool was large enough after all");
    }
}
