//! Through `LLM`, with text: what a request gives depends on nothing but itself, also with stop strings, several
//! completions and neighbours that are given up.
//!
//! Prompts and seeds are fixed: on a GPU a batch may change the last bits of a logit, so with fresh ones some seed would
//! meet two draws that f32 cannot tell apart.

use minisgl_engine::DType;
use minisgl_engine::config::CacheType;
use minisgl_engine::request::FinishReason;
use minisgl_llm::{LLM, LLMBuilder, Output, SamplingParams};
use minisgl_tests::harness::device;
use minisgl_tests::models::bundled;

const PROMPTS: [&str; 6] = [
    "What does Vec::push do?",
    "Returns the number of elements in the",
    "An iterator over the",
    "What does Vec::push do?",
    "Creates a new, empty `HashMap`",
    "#",
];

fn builder() -> LLMBuilder {
    LLM::builder(bundled().display().to_string())
        .device(device())
        .dtype(DType::F32)
        .num_page_override(512)
        .threads(2)
        .progress(false)
}

fn build(builder: LLMBuilder) -> LLM {
    builder.build().expect("the bundled model")
}

/// Greedy and sampled, one and several completions, with and without stop strings.
fn params() -> Vec<SamplingParams> {
    let sampled = |i: u64| SamplingParams {
        temperature: 0.9,
        top_k: 40,
        top_p: 0.95,
        seed: Some(i),
        max_tokens: 40,
        ..SamplingParams::default()
    };
    let stop = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    vec![
        SamplingParams { stop: stop(&[" the", "zzz"]), ..SamplingParams::greedy(40) },
        SamplingParams { n: 3, ..sampled(1) },
        SamplingParams { stop: stop(&[".", "`"]), n: 2, ..sampled(2) },
        sampled(3),
        SamplingParams { ignore_eos: true, repetition_penalty: 1.2, ..SamplingParams::greedy(60) },
        SamplingParams { presence_penalty: 0.5, stop: stop(&["\n"]), ..sampled(4) },
    ]
}

/// What must be the same.
fn essence(output: &Output) -> Vec<(String, Vec<u32>, FinishReason)> {
    output.completions().map(|o| (o.text.clone(), o.token_ids.clone(), o.finish_reason)).collect()
}

fn together(llm: &LLM) -> Vec<Vec<(String, Vec<u32>, FinishReason)>> {
    llm.generate(PROMPTS, params()).expect("outputs").iter().map(essence).collect()
}

#[test]
fn neighbours_do_not_show() {
    let llm = build(builder());
    let expected = together(&llm);
    assert!(expected.iter().flatten().any(|(_, _, reason)| *reason == FinishReason::Stop), "{expected:?}");
    for (i, (prompt, params)) in PROMPTS.into_iter().zip(params()).enumerate() {
        let alone = llm.generate([prompt], params).expect("an output");
        assert_eq!(essence(&alone[0]), expected[i], "request {i}");
    }
}

#[test]
fn settings_do_not_show() {
    let expected = together(&build(builder()));
    let variants: [(&str, LLMBuilder); 7] = [
        ("pages of 1, chunks of 3", builder().page_size(1).max_extend_tokens(3)),
        ("pages of 64, no prefix cache", builder().page_size(64).cache_type(CacheType::Naive)),
        ("two at a time", builder().max_running_req(2)),
        ("overlap", builder().overlap(true)),
        ("no overlap", builder().overlap(false)),
        ("no graphs", builder().cuda_graph_bs([])),
        ("graphs of 3 and 7", builder().cuda_graph_bs([3, 7])),
    ];
    for (name, variant) in variants {
        assert_eq!(together(&build(variant)), expected, "{name}");
    }
}

/// Neighbours that are given up, before their first token, at some token, and twice: rows and pages change hands while
/// steps are in flight.
#[test]
fn aborts_of_neighbours_do_not_show() {
    for overlap in [false, true] {
        let llm = build(builder().overlap(overlap).page_size(4).num_page_override(400));
        let expected = together(&llm);
        std::thread::scope(|scope| {
            let callers: Vec<_> = (0..2).map(|_| scope.spawn(|| together(&llm))).collect();
            for round in 0..12 {
                let endless = SamplingParams {
                    temperature: 1.0,
                    seed: Some(100 + round),
                    ignore_eos: true,
                    n: 1,
                    ..SamplingParams::greedy(200)
                };
                let mut stream = llm.stream(PROMPTS[round as usize % 6], endless).expect("a stream");
                for _ in 0..round / 2 {
                    stream.next();
                }
                let handle = stream.abort_handle();
                handle.abort();
                handle.abort();
                if round % 3 == 0 {
                    // Dropped in place of being read to its end.
                    continue;
                }
                let output = stream.into_output().expect("what there was");
                assert!(matches!(output.finish_reason, FinishReason::Abort | FinishReason::Length));
            }
            for caller in callers {
                assert_eq!(caller.join().expect("a caller"), expected, "overlap {overlap}");
            }
        });
        assert_eq!(together(&llm), expected, "overlap {overlap}, afterwards");
    }
}
