use super::*;
use crate::batch::Batch;
use crate::request::RequestParams;
use minisgl_kernels::Samples;

fn config() -> SchedulerConfig {
    SchedulerConfig {
        num_pages: 64,
        page_size: 4,
        max_running_req: 8,
        max_extend_tokens: 32,
        max_seq_len: 64,
        vocab: 50,
        eos_token_ids: vec![],
        cache_type: CacheType::Radix,
    }
}

fn request(len: u32, first: u32, max_tokens: usize) -> Request {
    let token_ids = (0..len).map(|i| (first.wrapping_mul(7) + i * i) % 50).collect();
    Request { token_ids, params: RequestParams { max_tokens, ..RequestParams::default() } }
}

/// Nothing is kept for a request that has ended or was aborted: a million of them leave what the pool holds.
///
/// Break: `self.groups.remove(&key)` in `Scheduler::remove`, `self.by_id.remove` in `Scheduler::end`, or
/// `self.computing.remove` in `no_longer_computing`.
#[test]
fn fault_07_a_million_requests_leave_no_memory_behind() {
    let mut scheduler = Scheduler::new(config()).expect("a valid config");
    let (mut batch, mut updates, mut in_flight) = (Batch::default(), Vec::new(), 0);
    let samples = Samples { tokens: vec![3; 8], ..Samples::default() };
    let mut id = 0;
    while id < 1_000_000 {
        while scheduler.waiting.len() < 16 {
            let n = 1 + id % 3;
            let ids: Vec<RequestId> = (id..id + n).map(RequestId).collect();
            scheduler.add(request(5, id as u32, 1 + id as usize % 2), &ids).expect("a valid request");
            if id % 5 == 0 {
                scheduler.abort(ids[0], &mut updates);
            }
            id += n;
        }
        in_flight += usize::from(scheduler.schedule(&mut batch));
        if in_flight == 2 {
            scheduler.commit(&samples, &mut updates);
            in_flight -= 1;
        }
        updates.clear();
    }
    while in_flight > 0 || scheduler.schedule(&mut batch) {
        scheduler.commit(&samples, &mut updates);
        in_flight = scheduler.num_in_flight();
    }
    scheduler.check_invariants();
    assert!(scheduler.is_idle());
    assert_eq!((scheduler.seqs.len(), scheduler.by_id.len(), scheduler.groups.len()), (0, 0, 0));
    assert_eq!((scheduler.computing.len(), scheduler.running.len(), scheduler.waiting.len()), (0, 0, 0));
    assert_eq!(scheduler.seqs.num_slots(), 0, "slots for sequences");
    assert!(scheduler.by_id.capacity() < 256 && scheduler.computing.capacity() < 256);
    let tree = scheduler.tree.as_ref().expect("a radix cache");
    assert!(tree.num_nodes() <= 64, "more nodes than pages");
    assert_eq!(scheduler.counters().pages_used, 0);
}

/// Each completion but the first has a seed of its own.
#[test]
fn completions_draw_from_their_own_seeds() {
    let mut seeds: Vec<u64> =
        (0..4).flat_map(|seed| (0..100).map(move |i| completion_seed(seed, i))).collect();
    assert_eq!(completion_seed(77, 0), 77);
    seeds.sort_unstable();
    seeds.dedup();
    assert_eq!(seeds.len(), 400);
}

/// An id can be used again only after its request has ended.
#[test]
fn an_id_in_use_is_refused() {
    let mut scheduler = Scheduler::new(config()).expect("a valid config");
    scheduler.add(request(3, 0, 1), &[RequestId(4)]).expect("a fresh id");
    for ids in [vec![RequestId(4)], vec![RequestId(5), RequestId(5)]] {
        let error = scheduler.add(request(3, 0, 1), &ids).expect_err("an id in use").to_string();
        assert!(error.contains(&format!("request id {} is in use", ids[0].0)), "{error}");
    }
    scheduler.check_invariants();
    assert_eq!(scheduler.counters().num_waiting, 1);
    let mut updates = Vec::new();
    scheduler.abort(RequestId(4), &mut updates);
    scheduler.add(request(3, 0, 1), &[RequestId(4)]).expect("a free id");
}

/// Every bad request is refused with its field, value and range.
#[test]
fn bad_requests_are_refused() {
    let scheduler = Scheduler::new(config()).expect("a valid config");
    let with = |change: &dyn Fn(&mut Request)| {
        let mut bad = request(3, 0, 8);
        change(&mut bad);
        scheduler.validate(&bad).expect_err("a bad request").to_string()
    };
    type Change = Box<dyn Fn(&mut Request)>;
    let table: Vec<(Change, &str)> = vec![
        (Box::new(|r| r.token_ids.clear()), "the prompt is empty"),
        (Box::new(|r| r.token_ids[1] = 50), "token_ids[1] is 50, must be below the vocabulary of 50"),
        (Box::new(|r| r.token_ids = vec![0; 64]), "the prompt has 64 tokens"),
        (Box::new(|r| r.params.temperature = -0.5), "temperature is -0.5"),
        (Box::new(|r| r.params.temperature = f32::NAN), "temperature is NaN"),
        (Box::new(|r| r.params.temperature = f32::INFINITY), "temperature is inf"),
        (Box::new(|r| r.params.top_p = 0.0), "top_p is 0, must be above 0"),
        (Box::new(|r| r.params.top_p = 1.5), "top_p is 1.5"),
        (Box::new(|r| r.params.min_p = -0.1), "min_p is -0.1"),
        (Box::new(|r| r.params.min_p = 1.1), "min_p is 1.1"),
        (Box::new(|r| r.params.presence_penalty = 2.5), "presence_penalty is 2.5"),
        (Box::new(|r| r.params.frequency_penalty = -3.0), "frequency_penalty is -3"),
        (Box::new(|r| r.params.repetition_penalty = 0.0), "repetition_penalty is 0"),
        (Box::new(|r| r.params.repetition_penalty = f32::NAN), "repetition_penalty is NaN"),
        (Box::new(|r| r.params.max_tokens = 0), "max_tokens is 0"),
        (Box::new(|r| r.params.logprobs = Some(21)), "logprobs is 21, must be at most 20"),
        (Box::new(|r| r.params.stop_token_ids = vec![3, 50]), "stop_token_ids[1] is 50"),
    ];
    for (change, expected) in table {
        let message = with(&change);
        assert!(message.contains(expected), "'{message}' should contain '{expected}'");
    }
}

/// Every setting out of range is refused with its name, value and range.
#[test]
fn bad_settings_are_refused() {
    type Change = fn(&mut SchedulerConfig);
    let table: [(Change, &str); 9] = [
        (|c| c.page_size = 3, "page_size is 3"),
        (|c| c.page_size = 0, "page_size is 0"),
        (|c| c.page_size = 512, "page_size is 512"),
        (|c| c.num_pages = 0, "num_pages is 0"),
        (|c| c.max_running_req = 0, "max_running_req is 0"),
        (|c| c.max_extend_tokens = 0, "max_extend_tokens is 0"),
        (|c| c.vocab = 0, "vocab is 0"),
        (|c| c.max_seq_len = 1, "max_seq_len is 1"),
        (|c| (c.num_pages, c.page_size) = (1 << 30, 256), "is 274877906944 slots"),
    ];
    for (change, expected) in table {
        let mut bad = config();
        change(&mut bad);
        let message = Scheduler::new(bad).expect_err("a bad setting").to_string();
        assert!(message.contains(expected), "'{message}' should contain '{expected}'");
    }
}
