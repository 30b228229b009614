//! A million prompts through `generate_iter` on the backend without arithmetic: every index exactly once, and no more
//! memory after a million than after a tenth of it. Alone in its program, whose peak is then this run's.

use std::time::Instant;

use minisgl_engine::config::EngineConfig;
use minisgl_kernels::null::{Null, NullOptions};
use minisgl_llm::{DType, Engine, LLM, LLMParts, Prompt, SamplingParams, Tokenizer};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/rust-docs-6m");
const VOCAB: usize = 4096;
const NUM_PROMPTS: usize = 1_000_000;
/// By how much the peak may grow between a tenth of the prompts and all: what an allocator needs that cuts up its
/// heap a little further. Four bytes kept for each prompt would be found.
const MAX_GROWTH_KIB: usize = 3 * 1024;

/// The bundled model's shape and tokenizer, without its arithmetic. The pool is small enough that prefixes are evicted
/// all the time.
fn llm() -> LLM {
    let config = EngineConfig {
        dtype: Some(DType::BF16),
        use_dummy_weight: true,
        page_size: 2,
        num_page_override: Some(2048),
        max_seq_len_override: Some(64),
        ..EngineConfig::new(MODEL)
    };
    let null = || Ok(Null::new(NullOptions { vocab: VOCAB, checked: false }));
    let engine = Engine::start_with(config, None, null).expect("an engine");
    let tokenizer = Tokenizer::from_file(format!("{MODEL}/tokenizer.json")).expect("a tokenizer");
    LLM::from_parts(LLMParts { tokenizer: Some(tokenizer.into()), ..LLMParts::new(engine) })
}

/// Largest memory of this process so far.
fn peak_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc/self/status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    line.trim().trim_end_matches(" kB").parse().expect("a number of KiB")
}

/// Prompts that share beginnings, of three to seven tokens.
fn prompt(i: usize) -> Prompt {
    let id = |i: usize| (i % VOCAB) as u32;
    let mut token_ids = vec![id(i / 1000), id(i / 10), id(i)];
    token_ids.extend((0..i % 5).map(|k| id(i * 31 + k)));
    Prompt::TokenIds(token_ids)
}

#[cfg(target_os = "linux")]
#[test]
fn a_million_prompts_in_bounded_memory() {
    let llm = llm();
    let mut is_seen = vec![false; NUM_PROMPTS];
    let (mut num_tokens, mut peak_of_a_tenth) = (0, 0);
    let start = Instant::now();
    let params = |i: usize| SamplingParams { max_tokens: 1 + i % 4, ignore_eos: true, ..Default::default() };
    let requests = (0..NUM_PROMPTS).map(|i| Ok((prompt(i), params(i))));
    for (number, (index, result)) in llm.generate_iter_each(requests).enumerate() {
        let output = result.expect("an output");
        assert!(!std::mem::replace(&mut is_seen[index], true), "prompt {index} came twice");
        assert_eq!(output.token_ids.len(), 1 + index % 4, "tokens of prompt {index}");
        assert_eq!(output.num_prompt_tokens, 3 + index % 5, "tokens of prompt {index}");
        num_tokens += output.token_ids.len();
        if number + 1 == NUM_PROMPTS / 10 {
            peak_of_a_tenth = peak_kib();
        }
    }
    let (peak, seconds) = (peak_kib(), start.elapsed().as_secs_f64());
    println!(
        "{NUM_PROMPTS} prompts, {num_tokens} output tokens, {seconds:.1} s: peak {peak_of_a_tenth} KiB after a \
         tenth, {peak} KiB at the end"
    );
    println!("{:?}", llm.stats());
    assert!(is_seen.iter().all(|&seen| seen), "a prompt is missing");
    let growth = peak - peak_of_a_tenth;
    assert!(growth <= MAX_GROWTH_KIB, "the peak grew by {growth} KiB from a tenth of the prompts to all");
}
