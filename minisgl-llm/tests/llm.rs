//! `LLM` on the bundled model.

use std::sync::OnceLock;

use minisgl_llm::{
    ChatOptions, DType, Device, Error, FinishReason, LLM, Message, Output, Prompt, SamplingParams,
};

/// From the package's directory, where Cargo starts a test.
const MODEL: &str = "../models/rust-docs-6m";
const QUESTION: &str = "What does Vec::push do?";

/// What the tests run on: `MINISGL_TEST_DEVICE`, or the CPU.
fn device() -> Device {
    std::env::var("MINISGL_TEST_DEVICE").map_or(Device::Cpu, |name| name.parse().unwrap())
}

/// One engine for all tests: they run in one shared batch.
fn llm() -> &'static LLM {
    static SHARED: OnceLock<LLM> = OnceLock::new();
    SHARED.get_or_init(|| {
        let builder = LLM::builder(MODEL).device(device()).dtype(DType::F32).num_page_override(512);
        builder.progress(false).build().unwrap()
    })
}

fn greedy(max_tokens: usize) -> SamplingParams {
    SamplingParams::greedy(max_tokens)
}

fn one(prompt: &str, params: SamplingParams) -> Output {
    llm().generate([prompt], params).unwrap().remove(0)
}

#[derive(serde::Deserialize)]
struct Golden {
    text: Option<String>,
    chat: Option<serde_json::Value>,
    prompt_ids: Vec<u32>,
    greedy_ids: Vec<u32>,
    ended_by_eos: bool,
    decoded: String,
}

fn goldens() -> Vec<Golden> {
    serde_json::from_str(&std::fs::read_to_string(format!("{MODEL}/goldens.json")).unwrap()).unwrap()
}

#[test]
fn goldens_from_text_to_text() {
    for golden in goldens() {
        let tokenizer = llm().tokenizer().unwrap();
        if let (Some(text), None) = (&golden.text, &golden.chat) {
            assert_eq!(tokenizer.encode(text, true).unwrap(), golden.prompt_ids);
        }
        let output = llm().generate([&golden.prompt_ids], greedy(golden.greedy_ids.len())).unwrap().remove(0);
        // The goldens hold the EOS, an output does not.
        let num_expected = golden.greedy_ids.len() - usize::from(golden.ended_by_eos);
        assert_eq!(output.token_ids, golden.greedy_ids[..num_expected], "{:?}", golden.text);
        assert_eq!(output.text, golden.decoded);
        let reason = if golden.ended_by_eos { FinishReason::Stop } else { FinishReason::Length };
        assert_eq!(output.finish_reason, reason);
        assert_eq!(output.num_prompt_tokens, golden.prompt_ids.len());
    }
}

/// The template writes BOS, and encoding does not add another.
///
/// Break: `encode(&text, false)` in `LLM::encode_chat` (to `true`).
#[test]
fn fault_15_chat_begins_with_one_bos() {
    let messages = [Message::user(QUESTION)];
    let ids = llm().encode_chat(&messages, &ChatOptions::default()).unwrap();
    assert_eq!(ids.iter().filter(|&&id| id == 4091).count(), 1, "{ids:?}");
    let output = llm().chat(messages.clone(), greedy(64)).unwrap();
    assert_eq!(output.finish_reason, FinishReason::Stop);
    assert!(
        output.text.contains("end of the collection") || output.text.contains("back of"),
        "{}",
        output.text
    );
    let same = llm().generate(vec![messages.to_vec()], greedy(64)).unwrap().remove(0);
    assert_eq!(same.text, output.text, "a conversation is a prompt too");
}

#[test]
fn increments_are_the_text() {
    let params = SamplingParams { temperature: 1.0, seed: Some(3), ..greedy(64) };
    let whole = one("Ownership is", params.clone());
    let mut stream = llm().stream("Ownership is", params).unwrap();
    let increments: Vec<String> = stream.by_ref().map(Result::unwrap).collect();
    assert!(increments.len() > 10 && increments.iter().all(|i| !i.is_empty()), "{increments:?}");
    assert_eq!(increments.concat(), whole.text);
    assert_eq!(stream.into_output().unwrap().token_ids, whole.token_ids);
}

#[test]
fn a_stop_string_is_in_neither_text_nor_stream() {
    let free = one("Ownership is", greedy(48));
    let from = free.text.char_indices().nth(free.text.chars().count() / 2).unwrap().0;
    // Begins and ends inside of words.
    let stop: String = free.text[from + 1..].chars().take(7).collect();
    let end = free.text.find(&stop).unwrap();
    let params = SamplingParams { stop: vec![stop.clone()], ..greedy(48) };
    let stopped = one("Ownership is", params.clone());
    assert_eq!((stopped.text.as_str(), stopped.finish_reason), (&free.text[..end], FinishReason::Stop));
    assert!(free.token_ids.starts_with(&stopped.token_ids) && stopped.token_ids.len() < free.token_ids.len());
    let streamed: String = llm().stream("Ownership is", params).unwrap().map(Result::unwrap).collect();
    assert_eq!(streamed, stopped.text);
}

#[test]
fn stop_ids_and_length() {
    let free = one("Ownership is", greedy(16));
    assert_eq!((free.token_ids.len(), free.finish_reason), (16, FinishReason::Length));
    let stop_id = free.token_ids[9];
    let first = free.token_ids.iter().position(|&id| id == stop_id).unwrap();
    let output = one("Ownership is", SamplingParams { stop_token_ids: vec![stop_id], ..greedy(16) });
    assert_eq!(
        (output.token_ids.as_slice(), output.finish_reason),
        (&free.token_ids[..first], FinishReason::Stop)
    );
}

#[test]
fn sampling_depends_on_the_seed_alone() {
    let params = |seed| SamplingParams { temperature: 1.0, seed: Some(seed), ..greedy(24) };
    let alone = one("A vector is", params(5));
    let mut prompts = vec!["Threads can"; 7];
    prompts.insert(3, "A vector is");
    let mut all = vec![SamplingParams { temperature: 0.7, ..greedy(20) }; 7];
    all.insert(3, params(5));
    let batch = llm().generate(&prompts, &all).unwrap();
    assert_eq!(batch[3].token_ids, alone.token_ids);
    assert_ne!(one("A vector is", params(6)).token_ids, alone.token_ids);
    let texts: std::collections::HashSet<_> = batch.iter().map(|output| &output.text).collect();
    assert_eq!(texts.len(), 8, "requests without a seed differ");
}

#[test]
fn n_completions_share_the_prompt_and_differ() {
    let params = SamplingParams { temperature: 1.0, n: 3, seed: Some(1), ..greedy(16) };
    let output = one("A slice is a view into", params.clone());
    let texts: Vec<_> = output.completions().map(|completion| completion.text.clone()).collect();
    assert_eq!((texts.len(), output.alternatives.len()), (3, 2));
    assert!(texts[0] != texts[1] && texts[1] != texts[2]);
    assert_eq!(one("A slice is a view into", SamplingParams { n: 1, ..params.clone() }).text, texts[0]);
    let error = llm().stream("x", params).unwrap_err().to_string();
    assert_eq!(error, "n is 3, a stream has one completion");
}

#[test]
fn logprobs_are_those_of_the_tokens() {
    let output = one("Ownership is", SamplingParams { logprobs: Some(4), ..greedy(8) });
    let logprobs = output.logprobs.unwrap();
    assert_eq!(logprobs.len(), output.token_ids.len());
    for (entry, &token) in logprobs.iter().zip(&output.token_ids) {
        assert_eq!((entry.top.len(), entry.top[0].0), (4, token), "greedy takes the most likely");
        assert_eq!(entry.chosen, entry.top[0].1);
        assert!(entry.top.is_sorted_by(|a, b| a.1 >= b.1) && entry.chosen < 0.0);
    }
    assert_eq!(one("Ownership is", greedy(1)).logprobs, None);
}

/// Queue, prefill and decode follow one another within the call, and only the last can be empty.
#[test]
fn an_output_says_where_its_time_went() {
    let start = std::time::Instant::now();
    let outputs = llm().generate(["Ownership is", "A trait is"], vec![greedy(20), greedy(1)]).unwrap();
    let elapsed = start.elapsed();
    for (output, has_decode) in outputs.iter().zip([true, false]) {
        let minisgl_llm::Timings { queue, prefill, decode } = output.timings;
        assert!(queue + prefill + decode <= elapsed, "{:?} of {elapsed:?}", output.timings);
        assert!(!prefill.is_zero() && (!decode.is_zero() || !has_decode), "{:?}", output.timings);
    }
}

#[test]
fn stats_count_what_ran() {
    let builder = LLM::builder(MODEL).device(Device::Cpu).num_page_override(64).progress(false);
    let llm = builder.build().unwrap();
    assert_eq!((llm.stats().counters.steps, llm.stats().busy_time), (0, std::time::Duration::ZERO));
    let prompt: Vec<u32> = (1..40).collect();
    for _ in 0..2 {
        llm.generate([&prompt], SamplingParams { ignore_eos: true, ..greedy(5) }).unwrap();
    }
    // The last step's counters come just after its tokens.
    let stats = loop {
        let stats = llm.stats();
        if stats.counters.num_running == 0 {
            break stats;
        }
        std::thread::yield_now();
    };
    let counters = stats.counters;
    assert_eq!((counters.steps, counters.output_tokens, counters.preemptions), (10, 10, 0));
    // Two pages of 16 of the first prompt serve the second.
    assert_eq!((counters.prefix_lookup_tokens, counters.prefix_hit_tokens), (78, 32));
    assert_eq!((counters.prompt_tokens, stats.prefix_hit_rate()), (39 + 7, 32.0 / 78.0));
    assert_eq!((counters.num_waiting, counters.pages_used), (0, 0));
    assert_eq!((counters.pages_cached + counters.pages_free, counters.pages_cached), (64, 2));
    assert!(stats.output_tokens_per_s() > 0.0 && stats.prompt_tokens_per_s() > 0.0, "{stats:?}");
    let parts = stats.schedule_time + stats.launch_time + stats.wait_time + stats.commit_time;
    assert!(parts <= stats.busy_time && !stats.mean_step().launch.is_zero(), "{stats:?}");
}

#[test]
fn callers_on_several_threads_share_the_engine() {
    let expected = one("A trait is", greedy(24)).text;
    std::thread::scope(|scope| {
        let calls: Vec<_> = (0..6).map(|_| scope.spawn(|| one("A trait is", greedy(24)).text)).collect();
        for call in calls {
            assert_eq!(call.join().unwrap(), expected);
        }
    });
}

#[test]
fn a_dropped_stream_is_aborted_and_an_aborted_one_ends() {
    let endless = SamplingParams { ignore_eos: true, ..greedy(6000) };
    let mut stream = llm().stream("Ownership is", endless.clone()).unwrap();
    stream.next().unwrap().unwrap();
    drop(stream);
    let mut stream = llm().stream("Ownership is", endless).unwrap();
    let first = stream.next().unwrap().unwrap();
    let handle = stream.abort_handle();
    std::thread::spawn(move || handle.abort()).join().unwrap();
    let rest: String = stream.by_ref().map(Result::unwrap).collect();
    let output = stream.into_output().unwrap();
    assert_eq!(output.finish_reason, FinishReason::Abort);
    assert_eq!(output.text, first + &rest);
    assert!(output.token_ids.len() < 6000);
}

#[test]
fn iterating_yields_every_prompt_once_and_errors_in_their_place() {
    let prompts = (0..700u32).map(|i| {
        if i % 100 == 99 { Prompt::TokenIds(vec![4096 + i]) } else { Prompt::TokenIds(vec![i + 1, i + 2]) }
    });
    let mut seen = vec![false; 700];
    let mut num_errors = 0;
    for (index, result) in llm().generate_iter(prompts, greedy(2)) {
        assert!(!std::mem::replace(&mut seen[index], true));
        match result {
            Ok(output) => assert_eq!(output.num_prompt_tokens, 2),
            Err(error) => {
                assert_eq!(index % 100, 99);
                assert!(error.reason().contains(&format!("{}", 4096 + index)), "{error}");
                num_errors += 1;
            }
        }
    }
    assert!(seen.iter().all(|&seen| seen));
    assert_eq!(num_errors, 7);
    // An unfinished iterator aborts what runs.
    let endless = SamplingParams { ignore_eos: true, ..greedy(4000) };
    drop(llm().generate_iter(["Ownership is"; 3], endless).take(0));
}

#[test]
fn prompts_are_taken_only_as_there_is_room() {
    let taken = std::cell::Cell::new(0);
    let prompts = (0..100_000u32).map(|i| {
        taken.set(i + 1);
        vec![i % 4000 + 1]
    });
    let mut outputs = llm().generate_iter(prompts, greedy(1));
    outputs.next().unwrap().1.unwrap();
    assert!(taken.get() <= 512, "{} prompts were taken for one output", taken.get());
}

fn problems(result: Result<Vec<Output>, Error>) -> Vec<(usize, String)> {
    match result {
        Err(Error::Invalid(invalid)) => invalid.problems.into_iter().map(|p| (p.index, p.why)).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_bad_prompt_is_named_before_anything_runs() {
    let steps = llm().stats().counters.steps;
    let too_long = vec![1u32; llm().info().max_seq_len];
    let prompts = vec![vec![1, 2], vec![], vec![5, 4096], vec![3], too_long.clone()];
    let found = problems(llm().generate(prompts, greedy(4)));
    assert_eq!(found.iter().map(|p| p.0).collect::<Vec<_>>(), [1, 2, 4]);
    assert!(found[0].1.contains("empty"), "{found:?}");
    assert!(found[1].1.contains("4096") && found[1].1.contains("vocabulary"), "{found:?}");
    let pages = format!("needs {} KV pages", (too_long.len() + 1).div_ceil(llm().info().page_size));
    assert!(found[2].1.contains(&pages), "{found:?}");
    let found = problems(llm().generate(["fine", ""], greedy(4)));
    assert_eq!((found.len(), found[0].0), (1, 1));

    let mut bad = vec![greedy(4); 3];
    bad[1].top_p = 1.5;
    bad[2].max_tokens = 0;
    let found = problems(llm().generate(["a", "b", "c"], &bad));
    assert_eq!(found[0], (1, "top_p is 1.5, expected a number above 0, at most 1".into()));
    assert_eq!(found[1], (2, "max_tokens is 0, expected at least 1".into()));

    let error = llm().generate(["a", "b", "c"], vec![greedy(4); 2]).unwrap_err().to_string();
    assert_eq!(error, "2 sampling params for 3 prompts: give one for all or one for each");
    let error = llm().validate(vec![1u32], &SamplingParams { stop_token_ids: vec![9999], ..greedy(1) });
    assert!(error.is_err_and(|e| e.to_string().contains("9999")));
    // Other tests share the engine, but none submits a million steps' worth of work.
    assert!(llm().stats().counters.steps < steps + 100_000);
    assert!(llm().generate(Vec::<String>::new(), greedy(1)).unwrap().is_empty());
}

#[test]
fn max_tokens_past_the_end_is_clamped_for_that_request_alone() {
    let builder = LLM::builder(MODEL).device(device()).max_seq_len_override(32).num_page_override(8);
    let llm = builder.progress(false).build().unwrap();
    let params = SamplingParams { ignore_eos: true, ..greedy(1000) };
    let list = vec![params.clone(), greedy(3)];
    let outputs = llm.generate(["Ownership is", "A trait is"], &list).unwrap();
    assert_eq!(list[0], params, "the caller's params are as they were");
    let total = outputs[0].num_prompt_tokens + outputs[0].token_ids.len();
    assert_eq!((total, outputs[0].finish_reason), (32, FinishReason::Length));
    assert_eq!(outputs[1].token_ids.len(), 3);
}

#[test]
fn models_that_cannot_be_found_or_used() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let fails = |model: &str| LLM::builder(model).progress(false).build().unwrap_err().to_string();
    assert_eq!(
        fails("no such model"),
        "'no such model' is neither a directory nor a model id like org/name or org/name@revision"
    );
    assert!(fails(path).contains("holds no config.json"), "{}", fails(path));
    let file = format!("{MODEL}/config.json");
    assert!(fails(&file).ends_with("is a file, expected a directory of Hugging Face files"));
    std::fs::write(dir.path().join("config.json"), r#"{"architectures": ["Frobnicator"]}"#).unwrap();
    let error = fails(path);
    assert!(error.contains("Frobnicator") && error.contains("LlamaForCausalLM"), "{error}");
}

#[test]
fn without_a_tokenizer_token_ids_still_work() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "generation_config.json", "model.safetensors"] {
        std::fs::copy(format!("{MODEL}/{file}"), dir.path().join(file)).unwrap();
    }
    let model = dir.path().to_str().unwrap();
    let llm = LLM::builder(model).device(device()).num_page_override(64).progress(false).build().unwrap();
    let output = llm.generate([[4091, 46, 893]], greedy(4)).unwrap().remove(0);
    assert_eq!((output.text.as_str(), output.token_ids.len()), ("", 4));
    let found = problems(llm.generate(["Ownership is"], greedy(4)));
    assert!(found[0].1.starts_with("there is no tokenizer "), "{found:?}");
    let found = problems(llm.generate([[1]], SamplingParams { stop: vec!["x".into()], ..greedy(4) }));
    assert!(found[0].1.starts_with("stop string \"x\" needs a tokenizer: "), "{found:?}");
    let error = llm.chat([Message::user("x")], greedy(1)).unwrap_err().to_string();
    assert!(error.starts_with("the model has no chat template"), "{error}");
}

#[test]
fn a_broken_tokenizer_is_named() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(format!("{MODEL}/config.json"), dir.path().join("config.json")).unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    let builder = LLM::builder(dir.path().to_str().unwrap()).use_dummy_weight(true).device(device());
    let error = builder.num_page_override(64).progress(false).build().unwrap_err().to_string();
    assert!(error.contains("tokenizer.json is not a tokenizer that can be used: "), "{error}");
}

#[test]
fn settings_that_cannot_be_met() {
    type Change = fn(minisgl_llm::LLMBuilder) -> minisgl_llm::LLMBuilder;
    let cases: &[(Change, &str)] = &[
        (|b| b.page_size(3), "page_size is 3"),
        (|b| b.page_size(512), "page_size is 512"),
        (|b| b.max_running_req(0), "max_running_req is 0"),
        (|b| b.max_extend_tokens(0), "max_extend_tokens is 0"),
        (|b| b.memory_ratio(0.0), "memory_ratio is 0"),
        (|b| b.memory_ratio(f64::NAN), "memory_ratio is NaN"),
        (|b| b.num_page_override(0), "num_page_override is 0"),
        (|b| b.max_seq_len_override(0), "max_seq_len_override is 0"),
        (|b| b.attention_backend("fa".parse().unwrap()), "fa"),
    ];
    for (change, expected) in cases {
        let builder = LLM::builder(MODEL).device(Device::Cpu).progress(false);
        let error = change(builder).build().unwrap_err().to_string();
        assert!(error.contains(expected), "expected {expected}: {error}");
    }
}

#[test]
fn is_send_and_sync() {
    fn check<T: Send + Sync>() {}
    check::<LLM>();
    fn check_send<T: Send>() {}
    check_send::<minisgl_llm::Stream>();
}
