//! `minisgl demo`: a question through the chat template, then a batch of plain prompts with different params.

use std::io::Write;
use std::time::Instant;

use minisgl_llm::{Message, Output, SamplingParams};

use crate::args::DemoArgs;
use crate::error::Result;

const QUESTION: &str = "What does Vec::push do?";

pub(crate) fn run(args: DemoArgs) -> Result<()> {
    let llm = args.engine.load()?;
    let mut out = std::io::stdout().lock();
    let info = llm.info();
    writeln!(
        out,
        "{} on {}, {}, {:.1} MiB of weights, ready after {:.2} s\n",
        info.architecture,
        info.device,
        info.dtype,
        info.weight_bytes as f64 / f64::from(1 << 20),
        info.load_time.as_secs_f64()
    )?;

    writeln!(out, "> {QUESTION}")?;
    let start = Instant::now();
    let answer = llm.chat([Message::user(QUESTION)], SamplingParams::greedy(128))?;
    writeln!(out, "{}\n", answer.text)?;
    writeln!(out, "{}\n", speed(&[answer], start))?;

    let requests = [
        ("Ownership is", SamplingParams::greedy(48)),
        ("A lifetime is", sampled(0.7, 1)),
        ("The `Option` type", sampled(0.7, 2)),
        ("Traits let you", SamplingParams { top_k: 40, ..sampled(1.0, 3) }),
        ("To handle an error,", SamplingParams { top_p: 0.9, ..sampled(1.0, 4) }),
        ("A macro is", SamplingParams { min_p: 0.1, ..sampled(1.2, 5) }),
        ("Threads can", SamplingParams { stop: vec![".".into()], ..sampled(0.5, 6) }),
        ("let mut v = vec![", SamplingParams { repetition_penalty: 1.2, ..SamplingParams::greedy(48) }),
    ];
    let (prompts, params): (Vec<_>, Vec<_>) = requests.into_iter().unzip();
    let start = Instant::now();
    let outputs = llm.generate(&prompts, params)?;
    let speed = speed(&outputs, start);
    for (prompt, output) in prompts.iter().zip(&outputs) {
        writeln!(out, "> {prompt}{}\n", output.text)?;
    }
    Ok(writeln!(out, "{speed}")?)
}

fn sampled(temperature: f32, seed: u64) -> SamplingParams {
    SamplingParams { temperature, max_tokens: 48, seed: Some(seed), ..Default::default() }
}

fn speed(outputs: &[Output], start: Instant) -> String {
    let seconds = start.elapsed().as_secs_f64();
    let prompt_tokens: usize = outputs.iter().map(|output| output.num_prompt_tokens).sum();
    let output_tokens: usize = outputs.iter().map(|output| output.token_ids.len()).sum();
    format!(
        "[{} requests in {seconds:.2} s: {prompt_tokens} prompt tokens, {:.0} tok/s; {output_tokens} output tokens, {:.0} tok/s]",
        outputs.len(),
        prompt_tokens as f64 / seconds,
        output_tokens as f64 / seconds
    )
}
