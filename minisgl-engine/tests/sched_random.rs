//! Seeded random operations on schedulers small enough to be always in trouble, with every invariant checked after
//! each.

mod sched_support;

use std::collections::VecDeque;

use minisgl_engine::batch::Batch;
use minisgl_engine::config::CacheType;
use minisgl_engine::request::{Request, RequestId, RequestParams};
use minisgl_engine::scheduler::{Scheduler, SchedulerConfig, Update};
use minisgl_kernels::Samples;
use sched_support::{Driver, End, Rng, for_seeds};

fn random_config(rng: &mut Rng, vocab: usize) -> SchedulerConfig {
    SchedulerConfig {
        num_pages: 1 + rng.below(12),
        page_size: [1, 2, 4, 16][rng.below(4)],
        max_running_req: 1 + rng.below(6),
        max_extend_tokens: 1 + rng.below(20),
        max_seq_len: 2 + rng.below(60),
        vocab,
        eos_token_ids: if rng.below(2) == 0 { vec![] } else { vec![1] },
        cache_type: if rng.below(4) == 0 { CacheType::Naive } else { CacheType::Radix },
    }
}

/// A prompt from a tiny set of prefixes, so that most share something.
fn random_request(rng: &mut Rng, max_len: usize) -> Request {
    let len = 1 + rng.below(max_len);
    Request {
        token_ids: (0..len).map(|_| u32::from(rng.below(8) == 0)).collect(),
        params: RequestParams {
            max_tokens: 1 + rng.below(12),
            ignore_eos: rng.below(2) == 0,
            temperature: rng.below(2) as f32,
            seed: rng.next(),
            repetition_penalty: if rng.below(4) == 0 { 1.5 } else { 1.0 },
            ..RequestParams::default()
        },
    }
}

/// `num_ops` operations with random results of the device; returns how often requests were preempted.
fn run_on_random_results(seed: u64, num_ops: usize) -> u64 {
    let mut rng = Rng(seed);
    let config = random_config(&mut rng, 2);
    let mut scheduler = Scheduler::new(config.clone()).expect("a valid config");
    let (mut batch, mut updates) = (Batch::default(), Vec::new());
    let mut num_samples = VecDeque::new();
    let mut live: Vec<RequestId> = Vec::new();
    let (mut next_id, mut num_ops_since_step) = (0, 0);
    for op in 0..num_ops {
        match rng.below(12) {
            0..3 if live.len() < 12 => {
                let request = random_request(&mut rng, config.max_seq_len);
                if scheduler.validate(&request).is_ok() {
                    let n = if rng.below(4) == 0 { 1 + rng.below(4) as u64 } else { 1 };
                    let ids: Vec<RequestId> = (next_id..next_id + n).map(RequestId).collect();
                    next_id += n;
                    scheduler.add(request, &ids).expect("a valid request");
                    live.extend(ids);
                }
            }
            3 if rng.below(4) == 0 && !live.is_empty() => {
                scheduler.abort(live[rng.below(live.len())], &mut updates);
            }
            4..8 => {
                let is_stuck = scheduler.num_in_flight() == 0 && !scheduler.is_idle();
                if scheduler.schedule(&mut batch) {
                    num_samples.push_back(batch.inputs.num_samples());
                    num_ops_since_step = 0;
                } else {
                    assert!(
                        !is_stuck,
                        "op {op}: nothing in flight, nothing planned, not idle: {scheduler:?}"
                    );
                }
            }
            _ => {
                if let Some(num) = num_samples.pop_front() {
                    let tokens = (0..num).map(|_| match rng.below(100) {
                        0 => u32::MAX,
                        n => u32::from(n % 8 == 0),
                    });
                    let samples = Samples { tokens: tokens.collect(), ..Samples::default() };
                    scheduler.commit(&samples, &mut updates);
                }
            }
        }
        num_ops_since_step = if scheduler.is_idle() { 0 } else { num_ops_since_step + 1 };
        assert!(num_ops_since_step < 1000, "op {op}: no step in a thousand operations");
        for update in updates.drain(..) {
            if let Update::Finished { id, .. } | Update::NotFinite { id, .. } = update {
                let at = live.iter().position(|&other| other == id);
                live.remove(at.unwrap_or_else(|| panic!("op {op}: request {} ended twice", id.0)));
            }
        }
        scheduler.check_invariants();
    }
    scheduler.counters().preemptions
}

#[test]
fn a_million_random_operations_keep_every_invariant() {
    let num_preemptions = std::sync::atomic::AtomicU64::new(0);
    for_seeds(500, |seed| {
        let num = run_on_random_results(seed, 2000);
        num_preemptions.fetch_add(num, std::sync::atomic::Ordering::Relaxed);
    });
    let is_alone = std::env::var_os("SEED").is_some();
    assert!(is_alone || num_preemptions.into_inner() > 0, "no run was ever short of pages");
}

/// Random operations on a checked device: whatever happens around a request, its output is that of its own tokens.
#[test]
fn outputs_depend_on_nothing_but_the_request() {
    for_seeds(300, |seed| {
        let mut rng = Rng(seed);
        let config = random_config(&mut rng, 16);
        let mut driver = Driver::new(config.clone());
        let mut requests = Vec::new();
        for _ in 0..400 {
            match rng.below(8) {
                0 => {
                    let request = random_request(&mut rng, config.max_seq_len);
                    if driver.scheduler.validate(&request).is_ok() {
                        let ids = driver.add_n(request.clone(), 1 + rng.below(3) as u64);
                        requests.extend((0..).zip(ids).map(|(i, id)| (id, request.clone(), i)));
                    }
                }
                1 if rng.below(8) == 0 && !requests.is_empty() => {
                    let (id, ..) = requests[rng.below(requests.len())];
                    driver.abort(id);
                }
                2..5 => {
                    driver.launch();
                }
                _ => {
                    driver.commit();
                }
            }
        }
        driver.run(rng.below(2) == 0);
        for (id, request, completion) in &requests {
            let (tokens, _) = sched_support::oracle(request, *completion, &config);
            let outcome = driver.outcome(*id);
            match outcome.end {
                Some(End::Finished(minisgl_engine::request::FinishReason::Abort)) => {
                    assert!(tokens.starts_with(&outcome.tokens), "request {}: {outcome:?}", id.0);
                }
                _ => driver.expect_oracle(*id, request, *completion),
            }
        }
    });
}
