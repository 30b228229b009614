//! Times the host's part of decode steps: the engine's loop on a backend that computes nothing, with a caller that takes
//! every token. Run it with `--release`.

use std::time::Duration;

use minisgl_engine::config::EngineConfig;
use minisgl_engine::mailbox::Mailbox;
use minisgl_engine::request::{Event, Request, RequestParams};
use minisgl_engine::{Engine, StepTimes, Submission};
use minisgl_kernels::null::{Null, NullOptions};

const PROMPT: usize = 512;
const STEPS: usize = 1000;
const VOCAB: usize = 128_256;

/// A column of the table: its name, and its time of a step.
type Part = (&'static str, fn(&StepTimes) -> Duration);

const PARTS: [Part; 4] = [
    ("schedule", |step| step.schedule),
    ("commit", |step| step.commit),
    ("other", |step| step.other),
    ("all three", |step| step.schedule + step.commit + step.other),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("decode with one step in flight, prompts of {PROMPT}: us a step, medians of {STEPS} steps");
    print!("{:>10}", "sequences");
    PARTS.iter().for_each(|(name, _)| print!("{name:>12}"));
    println!("{:>16}", "ns a sequence");
    for num_seqs in [1, 16, 64, 256, 1024] {
        let steps = decode_steps(num_seqs)?;
        print!("{num_seqs:>10}");
        let medians = PARTS.map(|(_, of)| median_us(&steps, of));
        medians.iter().for_each(|median| print!("{median:>12.2}"));
        println!("{:>16.1}", medians[3] * 1e3 / num_seqs as f64);
    }
    Ok(())
}

fn median_us(steps: &[StepTimes], of: fn(&StepTimes) -> Duration) -> f64 {
    let mut times: Vec<Duration> = steps.iter().map(of).collect();
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e6
}

/// What each decode step of `num_seqs` sequences took.
fn decode_steps(num_seqs: usize) -> Result<Vec<StepTimes>, Box<dyn std::error::Error>> {
    let page_size = 16;
    let config = EngineConfig {
        use_dummy_weight: true,
        overlap: Some(true),
        max_running_req: num_seqs,
        page_size,
        num_page_override: Some(num_seqs * (PROMPT + STEPS).div_ceil(page_size)),
        max_seq_len_override: Some(PROMPT + STEPS),
        ..EngineConfig::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../bench/shapes/llama-3.2-1b"))
    };
    let engine =
        Engine::start_with(config, None, || Ok(Null::new(NullOptions { vocab: VOCAB, checked: false })))?;
    let mut mailbox = Mailbox::new();
    let submission = |i: usize| Submission {
        request: Request {
            token_ids: (0..PROMPT).map(|at| ((i * 7919 + at * 31) % VOCAB) as u32).collect(),
            params: RequestParams { max_tokens: STEPS, ignore_eos: true, ..RequestParams::default() },
        },
        sinks: vec![mailbox.sink(())],
    };
    engine.submit((0..num_seqs).map(submission).collect())?;
    let mut num_running = num_seqs;
    while num_running > 0 {
        match mailbox.recv().1 {
            Event::Token { .. } => {}
            Event::Finished { .. } => num_running -= 1,
            Event::Failed(error) => return Err(error.into()),
        }
    }
    let recent = engine.recent_steps().into_iter();
    Ok(recent.filter(|step| step.is_decode && step.num_seqs == num_seqs).map(|step| step.times).collect())
}
