//! Faults of other engines that the scheduler must not have, a test each. The numbers are those of `docs/faults.md`,
//! whose rows `ci/break-faults` puts in; each test says what they break.

mod sched_support;

use minisgl_engine::EngineError;
use minisgl_engine::config::CacheType;
use minisgl_engine::request::{FinishReason, Request, RequestParams};
use minisgl_engine::scheduler::{MAX_STEPS_IN_FLIGHT, SchedulerConfig};
use minisgl_kernels::Samples;
use sched_support::{Driver, End, config, oracle, request};

const STOP: Option<End> = Some(End::Finished(FinishReason::Stop));
const LENGTH: Option<End> = Some(End::Finished(FinishReason::Length));
const ABORT: Option<End> = Some(End::Finished(FinishReason::Abort));

/// A config whose only EOS id is the token that follows `prompt` and `num` more tokens.
fn config_with_eos_after(prompt: &[u32], num: usize) -> SchedulerConfig {
    let (output, _) = oracle(&request(prompt, num + 1), 0, &config());
    SchedulerConfig { eos_token_ids: vec![output[num]], ..config() }
}

/// The same prompt twice in one batch: the pages of the second must not be freed while its row uses them.
///
/// Break: `pool.hold(page)` in `RadixTree::extend`.
#[test]
fn fault_01_same_prompt_twice_in_one_batch() {
    for cache_type in [CacheType::Radix, CacheType::Naive] {
        // A page of the followers that the tree has already: their last prompt token ends a page.
        for prompt_len in [7, 8, 9] {
            let mut driver = Driver::new(SchedulerConfig { cache_type, ..config() });
            let request = request(&(0..prompt_len).collect::<Vec<u32>>(), 20);
            let mut ids = vec![(driver.add(request.clone()), 0), (driver.add(request.clone()), 0)];
            ids.extend(driver.add_n(request.clone(), 3).into_iter().zip(0..));
            driver.run(true);
            for (id, completion) in ids {
                driver.expect_oracle(id, &request, completion);
            }
        }
    }
}

/// With a step in flight the end of a sequence is seen one step late: the token sampled meanwhile is garbage.
///
/// Break: the `if seq.phase != Phase::Ended` in `Scheduler::commit`.
#[test]
fn fault_02_token_after_eos_with_overlap() {
    let prompt = [1, 2, 3];
    let mut driver = Driver::new(config_with_eos_after(&prompt, 5));
    let request = request(&prompt, 100);
    let id = driver.add(request.clone());
    driver.run(true);
    assert_eq!(driver.outcome(id).tokens.len(), 5);
    driver.expect_oracle(id, &request, 0);
    assert_eq!(driver.outcome(id).end, STOP);
    // Prompt, five tokens, and one row for nothing.
    assert_eq!(driver.scheduler.counters().steps, 1 + 5 + 1, "at most one row is wasted");
}

/// A sequence whose length tells when it ends is not scheduled past it, overlap or not.
///
/// Break: `if seq.is_returning` in `plan_running`.
#[test]
fn fault_02_row_after_the_last_token() {
    for overlap in [false, true] {
        let mut driver = Driver::new(config());
        let id = driver.add(request(&[1, 2, 3], 5));
        driver.run(overlap);
        assert_eq!(driver.outcome(id).end, LENGTH);
        assert_eq!(driver.scheduler.counters().steps, 5);
    }
}

/// Abort while a step is in flight: pages and row come back once, when that step commits.
///
/// Break: `if self.seqs[idx].num_in_flight == 0` in `Scheduler::end`.
#[test]
fn fault_03_abort_with_a_step_in_flight() {
    for num_in_flight in [1, 2] {
        let mut driver = Driver::new(config());
        let id = driver.add(request(&[1, 2, 3, 4, 5], 100));
        let neighbour = request(&[9, 8], 10);
        let neighbour_id = driver.add(neighbour.clone());
        driver.launch();
        driver.commit();
        (0..num_in_flight).for_each(|_| assert!(driver.launch()));
        driver.abort(id);
        assert_eq!(driver.outcome(id).end, ABORT, "the caller hears of it at once");
        driver.abort(id);
        let held = driver.scheduler.counters().pages_used;
        for left in (0..num_in_flight).rev() {
            assert_eq!(driver.scheduler.counters().num_running, 2);
            driver.commit();
            let is_gone = driver.scheduler.counters().num_running == 1;
            assert_eq!(is_gone, left == 0, "it goes when its last step commits");
        }
        assert!(driver.scheduler.counters().pages_used < held);
        driver.run(true);
        driver.expect_oracle(neighbour_id, &neighbour, 0);
    }
}

/// Abort between the commit that finds EOS and the commit of the wasted row, and before the former.
///
/// Break: `self.by_id.remove(&seq.id)` in `Scheduler::end`.
#[test]
fn fault_03_abort_beside_eos() {
    let prompt = [1, 2, 3];
    for is_before in [false, true] {
        let mut driver = Driver::new(config_with_eos_after(&prompt, 1));
        let id = driver.add(request(&prompt, 100));
        driver.launch();
        driver.launch();
        driver.commit();
        driver.launch();
        if is_before {
            driver.abort(id);
        }
        driver.commit();
        driver.abort(id);
        assert_eq!(driver.outcome(id).end, if is_before { ABORT } else { STOP });
        driver.run(true);
    }
}

/// Admission must count whole pages: with pages of 16 a request of 17 tokens takes two.
///
/// Break: `num_computed.div_ceil` in `num_expected_pages` (to `num_computed / `).
#[test]
fn fault_04_admission_counts_whole_pages() {
    for cache_type in [CacheType::Radix, CacheType::Naive] {
        let tight = SchedulerConfig { num_pages: 5, page_size: 16, cache_type, ..config() };
        let mut driver = Driver::new(tight);
        let requests: Vec<Request> =
            (0..12).map(|i| request(&vec![i; 17 + 5 * (i as usize % 3)], 30)).collect();
        let ids: Vec<_> = requests.iter().map(|request| driver.add(request.clone())).collect();
        driver.run(true);
        for (request, id) in requests.iter().zip(ids) {
            driver.expect_oracle(id, request, 0);
        }
    }
}

/// `max_tokens` is clamped for the request that has less room, not for those that share its params.
///
/// Break: `self.max_seq_len - num_prompt` in `Scheduler::add` (to `self.max_seq_len`).
#[test]
fn fault_05_clamp_for_one_request_alone() {
    let mut driver = Driver::new(config());
    let params = RequestParams { max_tokens: 1000, ..RequestParams::default() };
    let prompt = |len: u32| Request { token_ids: (0..len).collect(), params: params.clone() };
    let (long, short) = (driver.add(prompt(190)), driver.add(prompt(20)));
    driver.run(true);
    assert_eq!((driver.outcome(long).tokens.len(), driver.outcome(long).end), (10, LENGTH));
    assert_eq!((driver.outcome(short).tokens.len(), driver.outcome(short).end), (180, LENGTH));
    assert_eq!(params.max_tokens, 1000);
}

/// A row of the page table must hold whole pages: 199 tokens in pages of 16 are 13, not 12.
///
/// Break: `div_ceil` in `SchedulerConfig::max_pages_per_seq` (to `/`).
#[test]
fn fault_06_row_of_whole_pages() {
    for page_size in [1, 2, 4, 16, 64, 256] {
        let mut driver = Driver::new(SchedulerConfig { page_size, max_seq_len: 199, ..config() });
        let request = request(&[5; 150], 1000);
        let id = driver.add(request.clone());
        driver.run(true);
        assert_eq!(driver.outcome(id).tokens.len(), 49);
        driver.expect_oracle(id, &request, 0);
    }
}

/// A step's inputs wait in one of two staging buffers until the device has taken them: a third step must not be planned
/// while two are in flight.
///
/// Break: `self.in_flight.len() == MAX_STEPS_IN_FLIGHT` in `Scheduler::schedule` (to `>`).
#[test]
fn fault_08_no_more_steps_than_staging_buffers() {
    let mut driver = Driver::new(config());
    let request = request(&[1, 2, 3], 20);
    let id = driver.add(request.clone());
    for _ in 0..10 {
        while driver.launched.len() < MAX_STEPS_IN_FLIGHT {
            assert!(driver.launch());
        }
        assert!(!driver.launch(), "a step for which there is no staging buffer");
        driver.commit();
    }
    assert_eq!(MAX_STEPS_IN_FLIGHT, 2);
    driver.run(true);
    driver.expect_oracle(id, &request, 0);
}

/// A row is not given to a new request while the last step of the old one can write to it.
///
/// Break: `if self.seqs[idx].num_in_flight == 0` in `Scheduler::end`.
#[test]
fn fault_09_row_reused_too_early() {
    let prompt = [1, 2, 3];
    let mut driver = Driver::new(SchedulerConfig { max_running_req: 1, ..config_with_eos_after(&prompt, 1) });
    let (first, second) = (request(&prompt, 100), request(&[7, 8, 9, 10], 6));
    let (first_id, second_id) = (driver.add(first.clone()), driver.add(second.clone()));
    assert!(driver.launch());
    assert!(driver.launch());
    driver.commit();
    assert!(driver.launch());
    driver.commit();
    assert_eq!(driver.outcome(first_id).end, STOP);
    assert!(!driver.launch(), "the only row is still in flight");
    driver.commit();
    assert!(driver.launch());
    driver.run(true);
    driver.expect_oracle(second_id, &second, 0);
}

/// A prompt whose every page is cached still has its last token computed.
///
/// Break: `self.tokens.len() - 1` in `Sequence::max_cached_pages`.
#[test]
fn fault_10_full_prefix_hit_has_a_query() {
    for page_size in [1, 2, 4, 16] {
        let mut driver = Driver::new(SchedulerConfig { page_size, ..config() });
        let request = request(&(0..32).collect::<Vec<u32>>(), 3);
        driver.add(request.clone());
        driver.run(false);
        let id = driver.add(request.clone());
        assert!(driver.launch());
        assert_eq!(driver.batch.seqs[0].q_len as usize, page_size, "the last page alone is computed again");
        driver.run(false);
        driver.expect_oracle(id, &request, 0);
        assert_eq!(driver.outcome(id).num_cached_tokens, 32 - page_size);
    }
}

/// No hit on pages that the same batch computes: a duplicate waits, and is then served from the cache.
///
/// Break: `s.num_committed >= seq.num_prompt` in `Scheduler::sibling` (to `true`) for the completions,
/// `must_wait(idx)` in `Scheduler::choose` for the duplicate.
#[test]
fn fault_11_no_hit_on_pages_of_the_same_batch() {
    for cache_type in [CacheType::Radix, CacheType::Naive] {
        for prompt_len in [9, 10, 12] {
            let mut driver = Driver::new(SchedulerConfig { cache_type, ..config() });
            let prompt: Vec<u32> = (0..prompt_len).collect();
            let ids = driver.add_n(request(&prompt, 5), 3);
            assert!(driver.launch());
            assert_eq!(driver.batch.seqs.len(), 1, "the others wait for its pages");
            driver.commit();
            assert!(driver.launch());
            assert_eq!(driver.batch.seqs.len(), 3);
            assert!(driver.batch.seqs.iter().all(|seq| seq.q_len == 1), "prompt pages are shared");
            driver.run(true);
            for (id, completion) in ids.into_iter().zip(0..) {
                driver.expect_oracle(id, &request(&prompt, 5), completion);
                let expected = if completion == 0 { 0 } else { prompt_len as usize - 1 };
                assert_eq!(driver.outcome(id).num_cached_tokens, expected);
            }
        }
    }
    let mut driver = Driver::new(config());
    let (first, second) = (request(&[1, 2, 3, 4, 5, 6], 5), request(&[1, 2, 3, 4, 9, 9], 5));
    driver.add(first);
    let id = driver.add(second.clone());
    assert!(driver.launch());
    assert_eq!(driver.batch.seqs.len(), 1, "the second waits for the first page of the first");
    driver.run(true);
    driver.expect_oracle(id, &second, 0);
    assert_eq!(driver.outcome(id).num_cached_tokens, 4);
}

/// A preempted request finds its own pages in the cache when it comes back.
///
/// Break: the reset of `num_scheduled` in `Scheduler::release`.
#[test]
fn fault_12_preemption_then_prefix_hit() {
    for overlap in [false, true] {
        for (cache_type, page_size) in [(CacheType::Radix, 1), (CacheType::Radix, 4), (CacheType::Naive, 4)] {
            let num_pages = 48 / page_size;
            let mut driver = Driver::new(SchedulerConfig { num_pages, page_size, cache_type, ..config() });
            let requests: Vec<Request> = (0..6).map(|i| request(&[i, i + 1, i + 2, i, i], 30)).collect();
            let ids: Vec<_> = requests.iter().map(|request| driver.add(request.clone())).collect();
            driver.run(overlap);
            let counters = driver.scheduler.counters();
            assert!(counters.preemptions > 0, "the pool was too large to show anything: {counters:?}");
            for (request, id) in requests.iter().zip(ids) {
                driver.expect_oracle(id, request, 0);
            }
        }
    }
}

/// A request that the pool can never hold is refused with both numbers; the largest that fits runs to its end.
///
/// Break: `needed > available` in `SchedulerConfig::validate` (to `>=`, or never).
#[test]
fn fault_14_larger_than_the_pool() {
    let small = SchedulerConfig { num_pages: 5, page_size: 4, ..config() };
    let mut driver = Driver::new(small);
    let error =
        driver.scheduler.validate(&request(&[1; 20], 10)).expect_err("20 tokens leave no room for one");
    assert!(
        matches!(error, EngineError::TooLarge { needed: 6, available: 5, page_size: 4 }),
        "unexpected error: {error}"
    );
    assert!(error.to_string().contains("needs 6 KV pages of 4 tokens"), "{error}");
    let largest = request(&[1; 19], 1000);
    let growing = request(&[2; 3], 1000);
    let ids = [driver.add(largest.clone()), driver.add(growing.clone())];
    driver.run(true);
    driver.expect_oracle(ids[0], &largest, 0);
    driver.expect_oracle(ids[1], &growing, 0);
    assert_eq!(driver.outcome(ids[1]).tokens.len(), 17);
}

/// Every id of the model's list ends an output, as do the request's own, and `ignore_eos` switches the former off.
///
/// Break: `eos_token_ids.contains(&token)` in `take_token` (to `first() == Some(&token)`).
#[test]
fn fault_15_every_eos_id_ends_the_output() {
    let prompt = [2, 7, 1];
    let (output, _) = oracle(&request(&prompt, 8), 0, &config());
    let is_first = |i: usize| !output[..i].contains(&output[i]);
    assert!((0..8).all(is_first), "the test needs eight different tokens: {output:?}");
    let eos_token_ids = vec![output[6], output[4], output[2]];
    for (ignore_eos, stop_token_ids, expected, end) in [
        (false, vec![], 2, STOP),
        (true, vec![], 8, LENGTH),
        (true, vec![output[7], output[5]], 5, STOP),
        (false, vec![output[1]], 1, STOP),
    ] {
        let mut driver = Driver::new(SchedulerConfig { eos_token_ids: eos_token_ids.clone(), ..config() });
        let params = RequestParams { max_tokens: 8, ignore_eos, stop_token_ids, ..RequestParams::default() };
        let request = Request { token_ids: prompt.to_vec(), params };
        let id = driver.add(request.clone());
        driver.run(true);
        assert_eq!((driver.outcome(id).tokens.len(), driver.outcome(id).end), (expected, end));
        driver.expect_oracle(id, &request, 0);
    }
}

/// A sample without a finite logit ends its request alone, also when its next step is in flight.
///
/// Break: `token == u32::MAX` in `take_token`.
#[test]
fn a_sample_without_a_finite_logit_ends_its_request_alone() {
    let mut driver = Driver::new(config());
    let (bad, good) = (request(&[1, 2, 3], 20), request(&[4, 5, 6, 7], 20));
    let (bad_id, good_id) = (driver.add(bad), driver.add(good.clone()));
    driver.launch();
    driver.launch();
    let samples: Samples = driver.launched.pop_front().expect("a launched step");
    let tokens = vec![u32::MAX, samples.tokens[1]];
    driver.commit_samples(&Samples { tokens, ..samples });
    assert_eq!(driver.outcome(bad_id).end, Some(End::NotFinite(3)));
    driver.run(true);
    driver.expect_oracle(good_id, &good, 0);
}
