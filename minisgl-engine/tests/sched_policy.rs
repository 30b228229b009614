//! What the scheduler promises about order, fairness, sharing and the shape of a batch.

mod sched_support;

use minisgl_engine::config::CacheType;
use minisgl_engine::request::{Request, RequestParams};
use minisgl_engine::scheduler::{MAX_OVERTAKEN, SchedulerConfig};
use sched_support::{Driver, Rng, config, for_seeds, request};

/// A config in which pages never matter.
fn roomy() -> SchedulerConfig {
    SchedulerConfig { num_pages: 4096, max_seq_len: 4000, max_running_req: 64, ..config() }
}

/// A running sequence is in every step, however many prompts arrive.
#[test]
fn decode_does_not_starve_behind_prompts() {
    let mut driver = Driver::new(roomy());
    let decoding = driver.add(request(&[1, 2, 3], 60));
    driver.launch();
    driver.commit();
    let mut rng = Rng(1);
    for step in 0..50 {
        driver.add(request(&rng.tokens(200, 1000), 5));
        assert!(driver.launch());
        let first = driver.batch.seqs[0];
        assert_eq!((first.q_len, first.kv_len), (1, 4 + step), "decode is first in step {step}");
        let num_prompt_tokens =
            driver.batch.inputs.num_tokens() - driver.batch.seqs.iter().filter(|seq| seq.q_len == 1).count();
        assert!(num_prompt_tokens <= 64, "{num_prompt_tokens} prompt tokens in a step of at most 64");
        assert!(driver.batch.inputs.num_tokens() <= driver.scheduler.config().max_step_tokens());
        driver.commit();
    }
    assert_eq!(driver.outcome(decoding).tokens.len(), 51);
}

/// A prompt of any length takes as many steps as its chunks, however many sequences decode beside it.
#[test]
fn a_long_prompt_does_not_starve_behind_decode() {
    let mut driver = Driver::new(roomy());
    let short: Vec<_> = (0..40).map(|i| driver.add(request(&[i], 300))).collect();
    driver.launch();
    driver.commit();
    let prompt = Rng(2).tokens(1000, 1000);
    let long = driver.add(request(&prompt, 1));
    let num_chunks = 1000usize.div_ceil(64);
    for chunk in 0..num_chunks {
        assert!(driver.outcome(long).tokens.is_empty());
        assert!(driver.launch());
        let last = driver.batch.seqs.last().expect("a chunk");
        assert_eq!(last.q_len as usize, 64.min(1000 - 64 * chunk), "chunk {chunk}");
        assert_eq!(driver.batch.seqs.len(), 41);
        driver.commit();
    }
    assert_eq!(driver.outcome(long).tokens.len(), 1);
    assert!(short.iter().all(|&id| driver.outcome(id).tokens.len() == 1 + num_chunks));
}

/// A batch is marked as decode exactly when each sequence has one query and samples.
#[test]
fn decode_batches_are_marked() {
    let mut driver = Driver::new(SchedulerConfig { max_extend_tokens: 1, ..roomy() });
    driver.add(request(&[1, 2, 3], 4));
    for expected in [false, false, true, true, true, true] {
        assert!(driver.launch());
        let batch = &driver.batch;
        assert_eq!(batch.is_decode, expected);
        assert_eq!(batch.sampled.len(), usize::from(expected));
        assert_eq!(batch.inputs.num_samples(), batch.sampled.len());
        driver.commit();
    }
    driver.run(false);
}

/// Each request is announced as started once, with the step that computes its first part.
#[test]
fn requests_start_once() {
    let mut driver = Driver::new(SchedulerConfig { num_pages: 12, max_extend_tokens: 8, ..config() });
    let mut ids: Vec<_> = (0..6).map(|i| driver.add(request(&[i; 9], 20))).collect();
    let mut started = Vec::new();
    loop {
        if driver.launch() {
            started.extend(driver.batch.started.iter().copied());
        } else if driver.launched.is_empty() {
            break;
        }
        driver.commit();
    }
    assert!(driver.scheduler.counters().preemptions > 0);
    started.sort_unstable();
    ids.sort_unstable();
    assert_eq!(started, ids);
}

/// Of two waiting requests the one with the longer cached prefix is admitted first.
#[test]
fn the_longest_cached_prefix_goes_first() {
    let mut driver = Driver::new(SchedulerConfig { max_running_req: 1, ..roomy() });
    let prefix: Vec<u32> = (0..40).collect();
    driver.add(request(&prefix, 1));
    driver.run(false);
    let cold = driver.add(request(&[7; 41], 1));
    let warm = driver.add(request(&[&prefix[..], &[5]].concat(), 1));
    driver.launch();
    assert_eq!(driver.batch.started, [warm]);
    driver.commit();
    driver.launch();
    assert_eq!(driver.batch.started, [cold]);
    driver.commit();
}

/// A request without a cached prefix is overtaken so many times and not once more.
#[test]
fn a_waiting_request_is_overtaken_a_bounded_number_of_times() {
    let mut driver = Driver::new(SchedulerConfig { max_running_req: 1, ..roomy() });
    let prefix: Vec<u32> = (0..40).collect();
    driver.add(request(&prefix, 1));
    driver.run(false);
    let cold = driver.add(request(&[7; 41], 1));
    let mut num_overtaken = 0;
    loop {
        driver.add(request(&[&prefix[..], &[num_overtaken]].concat(), 1));
        assert!(driver.launch());
        let is_admitted = driver.batch.started == [cold];
        driver.commit();
        if is_admitted {
            break;
        }
        num_overtaken += 1;
    }
    assert_eq!(num_overtaken, MAX_OVERTAKEN);
}

/// Several completions hold the pages of their prompt once, whatever the cache, and copy the page in which it ends.
#[test]
fn completions_share_the_pages_of_their_prompt() {
    for cache_type in [CacheType::Radix, CacheType::Naive] {
        for (prompt_len, num_whole, num_copies) in [(31, 7, 3), (32, 7, 3), (33, 8, 0)] {
            let mut driver = Driver::new(SchedulerConfig { cache_type, ..config() });
            let prompt: Vec<u32> = (0..prompt_len).collect();
            let params =
                RequestParams { max_tokens: 9, temperature: 1.0, seed: 3, ..RequestParams::default() };
            let request = Request { token_ids: prompt, params };
            let ids = driver.add_n(request.clone(), 4);
            driver.launch();
            driver.commit();
            driver.launch();
            assert_eq!(driver.batch.inputs.page_copies.len(), num_copies, "copies of a partial page");
            // The leader is a token ahead; each of the others has the page of its last token to itself.
            let leader_pages = (prompt_len as usize + 1).div_ceil(4);
            assert_eq!(
                driver.scheduler.counters().pages_used,
                leader_pages + 3,
                "{num_whole} pages are shared"
            );
            driver.commit();
            driver.run(true);
            for (&id, completion) in ids.iter().zip(0..) {
                driver.expect_oracle(id, &request, completion);
            }
            assert_ne!(driver.outcome(ids[0]).tokens, driver.outcome(ids[1]).tokens, "each draws for itself");
        }
    }
}

/// The output is cached too: a conversation that goes on computes its new part alone.
#[test]
fn generated_tokens_are_a_prefix_for_the_next_turn() {
    let mut driver = Driver::new(config());
    let prompt: Vec<u32> = (0..10).collect();
    let first = driver.add(request(&prompt, 20));
    driver.run(true);
    let turn = [&prompt[..], &driver.outcome(first).tokens, &[1, 2, 3]].concat();
    let second = driver.add(request(&turn, 5));
    driver.run(true);
    driver.expect_oracle(second, &request(&turn, 5), 0);
    // 29 of the first turn's 30 tokens were computed: 7 whole pages of 4.
    assert_eq!(driver.outcome(second).num_cached_tokens, 28);
    let counters = driver.scheduler.counters();
    assert_eq!((counters.prefix_lookup_tokens, counters.prefix_hit_tokens), (10 + 33, 28));
}

/// Without a cache nothing is kept and nothing is found.
#[test]
fn the_naive_cache_keeps_nothing() {
    let mut driver = Driver::new(SchedulerConfig { cache_type: CacheType::Naive, ..config() });
    let prompt: Vec<u32> = (0..40).collect();
    for _ in 0..2 {
        let id = driver.add(request(&prompt, 5));
        driver.run(true);
        assert_eq!(driver.outcome(id).num_cached_tokens, 0);
        let counters = driver.scheduler.counters();
        assert_eq!((counters.pages_cached, counters.pages_free), (0, 256));
    }
}

/// Admission counts on a share of `max_tokens`, learned from what requests use: short outputs under a large limit
/// run side by side where full reservations would run them one by one.
#[test]
fn admission_reserves_what_is_likely() {
    let prompt = |i: u32| vec![i, 3, 5, i + 1];
    let eos_token_ids: Vec<u32> =
        (0..120).map(|i| sched_support::oracle(&request(&prompt(i), 4), 0, &config()).0[3]).collect();
    let tight = SchedulerConfig { num_pages: 50, max_running_req: 24, eos_token_ids, ..config() };
    let mut driver = Driver::new(tight);
    let mut most = 0;
    for i in 0..120 {
        driver.add(request(&prompt(i), 190));
    }
    while driver.step(true) {
        most = most.max(driver.scheduler.counters().num_running);
    }
    assert!(most >= 8, "at most {most} side by side, where 194 tokens each would let one in");
}

/// When pages run out the sequence admitted last gives way, and the one admitted first never does.
#[test]
fn the_newest_is_preempted() {
    let mut driver = Driver::new(SchedulerConfig { num_pages: 14, ..config() });
    let oldest = driver.add(request(&[1; 6], 40));
    let newest = driver.add(request(&[2; 6], 40));
    let mut num_preempted = 0;
    while driver.step(false) {
        let counters = driver.scheduler.counters();
        if counters.preemptions > num_preempted {
            num_preempted = counters.preemptions;
            assert!(driver.batch.seqs.iter().all(|seq| seq.row == 0), "the oldest keeps its row");
        }
    }
    assert!(num_preempted > 0);
    for (id, prompt) in [(oldest, [1; 6]), (newest, [2; 6])] {
        driver.expect_oracle(id, &request(&prompt, 40), 0);
    }
}

/// Penalty counts are rebuilt when a sequence enters a row, with what it has generated before (the checked device
/// compares them with the history at every sample).
#[test]
fn penalty_counts_follow_a_preempted_sequence() {
    let mut driver = Driver::new(SchedulerConfig { num_pages: 12, ..config() });
    let params = RequestParams { max_tokens: 30, presence_penalty: 0.5, ..RequestParams::default() };
    let requests: Vec<Request> =
        (0..4).map(|i| Request { token_ids: vec![i; 6], params: params.clone() }).collect();
    let ids: Vec<_> = requests.iter().map(|request| driver.add(request.clone())).collect();
    driver.run(true);
    assert!(driver.scheduler.counters().preemptions > 0);
    for (request, id) in requests.iter().zip(ids) {
        driver.expect_oracle(id, request, 0);
    }
}

/// The same requests give the same outputs whatever the pages, the chunks, the rows, the cache and the overlap.
#[test]
fn outputs_are_equal_under_every_setting() {
    for_seeds(3, |seed| {
        let mut rng = Rng(seed);
        let shared = rng.tokens(30, 50);
        let requests: Vec<Request> = (0..12)
            .map(|i| {
                let own = 1 + rng.below(40);
                let token_ids = [&shared[..rng.below(30)], &rng.tokens(own, 50)].concat();
                let temperature = rng.below(2) as f32;
                let params = RequestParams {
                    max_tokens: 1 + rng.below(40),
                    temperature,
                    seed: i,
                    ..RequestParams::default()
                };
                Request { token_ids, params }
            })
            .collect();
        for page_size in [1, 4, 16, 256] {
            for max_extend_tokens in [1, 7, 64, 1000] {
                for (max_running_req, num_tokens) in [(1, 512), (3, 256), (16, 256), (16, 4096)] {
                    for cache_type in [CacheType::Radix, CacheType::Naive] {
                        let num_pages = num_tokens / page_size;
                        let mut driver = Driver::new(SchedulerConfig {
                            num_pages,
                            page_size,
                            max_running_req,
                            max_extend_tokens,
                            cache_type,
                            eos_token_ids: vec![7, 8],
                            vocab: 50,
                            max_seq_len: 130,
                        });
                        let ids: Vec<_> =
                            requests.iter().map(|request| driver.add(request.clone())).collect();
                        driver.run(rng.below(2) == 0);
                        for (request, id) in requests.iter().zip(ids) {
                            driver.expect_oracle(id, request, 0);
                        }
                    }
                }
            }
        }
    });
}
