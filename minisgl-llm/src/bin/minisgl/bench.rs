//! `minisgl bench`.

use std::io::Write;
use std::time::{Duration, Instant};

use minisgl_llm::{LLM, SamplingParams};
use serde::Serialize;

use crate::args::BenchArgs;
use crate::error::{CliError, Result};
use crate::workload::Workload;

/// One run of the workload.
#[derive(Clone, Copy, Debug, Serialize)]
struct Run {
    seconds: f64,
    prompt_tokens: usize,
    output_tokens: usize,
    prompt_tokens_per_s: f64,
    output_tokens_per_s: f64,
}

#[derive(Serialize)]
struct Report<'a> {
    model: &'a str,
    architecture: &'a str,
    device: &'a str,
    dtype: String,
    dummy_weights: bool,
    load_seconds: f64,
    weight_bytes: usize,
    kv_bytes_per_token: usize,
    num_pages: usize,
    page_size: usize,
    num_requests: usize,
    temperature: f32,
    prompt_tokens: usize,
    output_tokens: usize,
    median: Run,
    runs: &'a [Run],
}

/// Requests and tokens of the warm-up: enough to touch every kind of step.
const WARM_UP_REQUESTS: usize = 8;
const WARM_UP_TOKENS: usize = 8;

pub(crate) fn run(args: BenchArgs) -> Result<()> {
    let workload = Workload::from_args(&args)?;
    let llm = args.engine.load()?;
    let info = llm.info();
    let mut out = std::io::stdout().lock();
    let kind = if args.engine.use_dummy_weight { "dummy weights" } else { "weights" };
    writeln!(
        out,
        "{} on {}, {}, {:.1} MiB of {kind}",
        info.architecture,
        info.device,
        info.dtype,
        mib(info.weight_bytes)
    )?;
    writeln!(
        out,
        "{} requests, {} prompt and up to {} output tokens, temperature {}; {} KV pages of {} tokens",
        workload.num_requests(),
        workload.prompt_len.iter().sum::<usize>(),
        workload.max_tokens.iter().sum::<usize>(),
        workload.temperature,
        info.num_pages,
        info.page_size
    )?;
    warm_up(&llm, &workload, args.engine.seed)?;
    let mut runs = Vec::with_capacity(args.repeats);
    for repeat in 0..args.repeats {
        let run = measure(&llm, &workload, args.engine.seed, 1 + repeat as u64)?;
        writeln!(
            out,
            "run {}: {:.2} s, prompt {:.1} tok/s, output {:.1} tok/s",
            repeat + 1,
            run.seconds,
            run.prompt_tokens_per_s,
            run.output_tokens_per_s
        )?;
        runs.push(run);
    }
    let median = median(&runs);
    writeln!(
        out,
        "median: {:.2} s, prompt {:.1} tok/s, output {:.1} tok/s",
        median.seconds, median.prompt_tokens_per_s, median.output_tokens_per_s
    )?;
    if let Some(path) = &args.json {
        let report = Report {
            model: &args.engine.model,
            architecture: &info.architecture,
            device: &info.device,
            dtype: info.dtype.to_string(),
            dummy_weights: args.engine.use_dummy_weight,
            load_seconds: info.load_time.as_secs_f64(),
            weight_bytes: info.weight_bytes,
            kv_bytes_per_token: info.kv_bytes_per_token,
            num_pages: info.num_pages,
            page_size: info.page_size,
            num_requests: workload.num_requests(),
            temperature: workload.temperature,
            prompt_tokens: median.prompt_tokens,
            output_tokens: median.output_tokens,
            median,
            runs: &runs,
        };
        let text = serde_json::to_string_pretty(&report).map_err(|e| CliError::Run(e.to_string()))?;
        std::fs::write(path, text + "\n").map_err(CliError::file("write", path))?;
    }
    Ok(())
}

fn mib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn params(workload: &Workload, limit: usize) -> Vec<SamplingParams> {
    let params = |&max_tokens: &usize| SamplingParams {
        temperature: workload.temperature,
        ignore_eos: workload.ignore_eos,
        max_tokens: max_tokens.min(limit),
        ..SamplingParams::default()
    };
    workload.max_tokens.iter().map(params).collect()
}

fn warm_up(llm: &LLM, workload: &Workload, seed: u64) -> Result<()> {
    let mut prompts = workload.prompts(llm.info().vocab, seed, 0);
    let mut params = params(workload, WARM_UP_TOKENS);
    prompts.truncate(WARM_UP_REQUESTS);
    params.truncate(WARM_UP_REQUESTS);
    llm.generate(prompts, params)?;
    Ok(())
}

fn measure(llm: &LLM, workload: &Workload, seed: u64, run: u64) -> Result<Run> {
    let prompts = workload.prompts(llm.info().vocab, seed, run);
    let params = params(workload, usize::MAX);
    let start = Instant::now();
    let outputs = llm.generate(prompts, params)?;
    let seconds = start.elapsed().max(Duration::from_nanos(1)).as_secs_f64();
    let prompt_tokens = outputs.iter().map(|output| output.num_prompt_tokens).sum();
    let output_tokens = outputs.iter().map(|output| output.token_ids.len()).sum();
    Ok(Run {
        seconds,
        prompt_tokens,
        output_tokens,
        prompt_tokens_per_s: prompt_tokens as f64 / seconds,
        output_tokens_per_s: output_tokens as f64 / seconds,
    })
}

/// The run with the median time; of an even number the slower one of the two in the middle.
fn median(runs: &[Run]) -> Run {
    let mut sorted = runs.to_vec();
    sorted.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    sorted[sorted.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        let run = |seconds| Run {
            seconds,
            prompt_tokens: 1,
            output_tokens: 1,
            prompt_tokens_per_s: 1.0,
            output_tokens_per_s: 1.0,
        };
        assert_eq!(median(&[3.0, 1.0, 2.0].map(run)).seconds, 2.0);
        assert_eq!(median(&[1.0, 4.0].map(run)).seconds, 4.0);
    }
}
