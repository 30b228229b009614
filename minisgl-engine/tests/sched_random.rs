//! A million seeded random operations on schedulers small enough to be always in trouble, with every invariant
//! checked after each.

use minisgl_engine::batch::Batch;
use minisgl_engine::config::CacheType;
use minisgl_engine::request::{Request, RequestId, RequestParams};
use minisgl_engine::scheduler::{Scheduler, SchedulerConfig, Update};
use minisgl_kernels::Samples;

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

fn random_config(rng: &mut Rng) -> SchedulerConfig {
    SchedulerConfig {
        num_pages: 1 + rng.below(12),
        page_size: [1, 2, 4, 16][rng.below(4)],
        max_running_req: 1 + rng.below(6),
        max_extend_tokens: 1 + rng.below(20),
        max_seq_len: 2 + rng.below(60),
        vocab: 2,
        eos_token_ids: if rng.below(2) == 0 { vec![] } else { vec![1] },
        cache_type: if rng.below(4) == 0 { CacheType::Naive } else { CacheType::Radix },
    }
}

fn random_request(rng: &mut Rng, max_len: usize) -> Request {
    let len = 1 + rng.below(max_len);
    Request {
        token_ids: (0..len).map(|_| u32::from(rng.below(8) == 0)).collect(),
        params: RequestParams {
            max_tokens: 1 + rng.below(12),
            ignore_eos: rng.below(2) == 0,
            repetition_penalty: if rng.below(4) == 0 { 1.5 } else { 1.0 },
            ..RequestParams::default()
        },
    }
}

fn run(seed: u64, num_ops: usize) {
    let mut rng = Rng(seed);
    let config = random_config(&mut rng);
    let mut scheduler = Scheduler::new(config.clone()).expect("a valid config");
    let (mut batch, mut updates) = (Batch::default(), Vec::new());
    let mut num_samples = std::collections::VecDeque::new();
    let mut live: Vec<RequestId> = Vec::new();
    let mut next_id = 0;
    let mut is_draining = false;
    let mut idle_steps = 0;
    for op in 0..num_ops {
        is_draining = if scheduler.is_idle() { false } else { is_draining || rng.below(200) == 0 };
        match rng.below(12) {
            0..3 if !is_draining && live.len() < 12 => {
                let request = random_request(&mut rng, config.max_seq_len);
                if scheduler.validate(&request).is_ok() {
                    let n = if rng.below(4) == 0 { 1 + rng.below(4) } else { 1 };
                    let ids: Vec<RequestId> = (0..n as u64).map(|i| RequestId(next_id + i)).collect();
                    next_id += n as u64;
                    scheduler.add(request, &ids).expect("a valid request");
                    live.extend(ids);
                }
            }
            3 if rng.below(4) == 0 && !live.is_empty() => {
                scheduler.abort(live[rng.below(live.len())], &mut updates);
            }
            4..8 => {
                let in_flight = scheduler.num_in_flight();
                if scheduler.schedule(&mut batch) {
                    num_samples.push_back(batch.inputs.num_samples());
                    idle_steps = 0;
                } else if in_flight == 0 && !scheduler.is_idle() {
                    panic!(
                        "seed {seed}, op {op}: nothing in flight, nothing scheduled, not idle: {scheduler:?}"
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
        idle_steps = if scheduler.is_idle() { 0 } else { idle_steps + 1 };
        assert!(idle_steps < 1000, "seed {seed}, op {op}: no step in a thousand operations");
        for update in updates.drain(..) {
            if let Update::Finished { id, .. } | Update::NotFinite { id, .. } = update {
                let at = live.iter().position(|&other| other == id);
                live.remove(at.unwrap_or_else(|| panic!("seed {seed}: request {} ended twice", id.0)));
            }
        }
        scheduler.check_invariants();
    }
}

#[test]
fn a_million_random_operations_keep_every_invariant() {
    let base = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    for seed in base..base + 500 {
        let result = std::panic::catch_unwind(|| run(seed, 2000));
        if let Err(panic) = result {
            eprintln!("failed with SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
