//! Times the scheduler alone: planning and committing decode steps at growing numbers of running sequences, the
//! same with prompts coming and going, and eviction from a large prefix tree. Run it with `--release`.

use std::time::{Duration, Instant};

use minisgl_engine::batch::Batch;
use minisgl_engine::config::CacheType;
use minisgl_engine::kv::{PagePool, RadixTree};
use minisgl_engine::request::{Request, RequestId, RequestParams};
use minisgl_engine::scheduler::{Scheduler, SchedulerConfig, Update};
use minisgl_kernels::Samples;

const PAGE_SIZE: usize = 16;
const PROMPT: usize = 512;
const VOCAB: usize = 128_000;
const BLOCK: usize = 100;

fn main() {
    println!(
        "decode, one step planned and committed, one in flight, prompts of {PROMPT}, pages of {PAGE_SIZE}"
    );
    println!(
        "{:>10} {:>10} {:>10} {:>10} {:>22}",
        "sequences", "best us", "median us", "p99 us", "median ns a sequence"
    );
    for num_seqs in [1, 16, 64, 256, 1024, 4096] {
        let mut times = decode_steps(num_seqs);
        times.sort_unstable();
        let (median, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
        let each = median.as_nanos() as f64 / num_seqs as f64;
        let (best, median, p99) = (micros(times[0]), micros(median), micros(p99));
        println!("{num_seqs:>10} {best:>10.2} {median:>10.2} {p99:>10.2} {each:>22.1}");
    }

    let (num_requests, time, steps) = churn(CacheType::Radix);
    println!("\n{num_requests} requests of 128 + 32 tokens through 256 rows: {steps} steps");
    println!(
        "{:.2} us a step, {:.2} us a request",
        micros(time) / steps as f64,
        micros(time) / num_requests as f64
    );

    println!("\neviction, one page at a time, median of blocks of {BLOCK}");
    println!("{:>10} {:>12} {:>14}", "nodes", "pages", "ns a page");
    for num_nodes in [1_000, 10_000, 100_000] {
        let (pages, mut times) = evict(num_nodes);
        times.sort_unstable();
        let each = times[times.len() / 2].as_nanos() as f64 / BLOCK as f64;
        println!("{num_nodes:>10} {pages:>12} {each:>14.1}");
    }
}

fn micros(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1e3
}

fn scheduler(num_seqs: usize, num_pages: usize, cache_type: CacheType) -> Scheduler {
    Scheduler::new(SchedulerConfig {
        num_pages,
        page_size: PAGE_SIZE,
        max_running_req: num_seqs,
        max_extend_tokens: 8192,
        max_seq_len: 8192,
        vocab: VOCAB,
        eos_token_ids: vec![VOCAB as u32 - 1, VOCAB as u32 - 2],
        cache_type,
    })
    .expect("a valid config")
}

fn request(seed: usize, prompt_len: usize, max_tokens: usize) -> Request {
    Request {
        token_ids: (0..prompt_len).map(|i| ((seed * 7919 + i * 31) % (VOCAB - 2)) as u32).collect(),
        params: RequestParams { max_tokens, temperature: 0.6, ..RequestParams::default() },
    }
}

/// The loop of the engine without a device: plan a step, then take in the one before.
struct Loop {
    scheduler: Scheduler,
    batch: Batch,
    updates: Vec<Update>,
    samples: Samples,
    num_launched: usize,
}

impl Loop {
    fn new(scheduler: Scheduler) -> Self {
        let tokens = vec![7; scheduler.config().max_running_req];
        let samples = Samples { tokens, ..Samples::default() };
        Self { scheduler, batch: Batch::default(), updates: Vec::new(), samples, num_launched: 0 }
    }

    fn step(&mut self) -> bool {
        let is_planned = self.scheduler.schedule(&mut self.batch);
        if self.num_launched > 0 {
            self.updates.clear();
            self.scheduler.commit(&self.samples, &mut self.updates);
            self.num_launched -= 1;
        }
        self.num_launched += usize::from(is_planned);
        is_planned || self.num_launched > 0
    }
}

fn decode_steps(num_seqs: usize) -> Vec<Duration> {
    let (num_steps, warm_up) = (1000, 100);
    let num_tokens = PROMPT + 2 * (num_steps + warm_up) + num_seqs;
    let num_pages = num_seqs * num_tokens.div_ceil(PAGE_SIZE);
    let mut bench = Loop::new(scheduler(num_seqs, num_pages, CacheType::Radix));
    for i in 0..num_seqs {
        // Lengths that differ, so that new pages are spread over the steps.
        let request = request(i, PROMPT + i % PAGE_SIZE, 4096);
        bench.scheduler.add(request, &[RequestId(i as u64)]).expect("a valid request");
    }
    while bench.batch.sampled.len() < num_seqs {
        assert!(bench.step());
    }
    (0..warm_up).for_each(|_| assert!(bench.step()));
    (0..num_steps)
        .map(|_| {
            let start = Instant::now();
            bench.step();
            let time = start.elapsed();
            assert!(bench.batch.is_decode && bench.batch.seqs.len() == num_seqs);
            time
        })
        .collect()
}

fn churn(cache_type: CacheType) -> (usize, Duration, u64) {
    let num_requests = 20_000;
    let mut bench = Loop::new(scheduler(256, 20_000, cache_type));
    for i in 0..num_requests {
        let ids = [RequestId(i as u64)];
        bench.scheduler.add(request(i, 128, 32), &ids).expect("a valid request");
    }
    let start = Instant::now();
    while bench.step() {}
    (num_requests, start.elapsed(), bench.scheduler.counters().steps)
}

/// A tree of `num_nodes` nodes of one or two pages, three levels deep, evicted whole.
fn evict(num_nodes: usize) -> (usize, Vec<Duration>) {
    let mut pool = PagePool::new(4 * num_nodes);
    let mut tree = RadixTree::new(PAGE_SIZE);
    let mut i = 0;
    while tree.num_nodes() < num_nodes {
        let (top, middle) = (i % 50, i % 5000);
        let tokens: Vec<u32> = [top, middle, i]
            .iter()
            .flat_map(|&id| (0..PAGE_SIZE).map(move |offset| (id * PAGE_SIZE + offset) as u32))
            .collect();
        let mut pages = Vec::new();
        let node = tree.lock_prefix(&tokens, 3, &mut pages);
        pages.iter().for_each(|&page| pool.hold(page));
        let num_locked = pages.len();
        while pages.len() < 3 {
            pages.push(pool.alloc().expect("a pool that is large enough"));
        }
        tree.finish(node, num_locked, &tokens, &pages, &mut pool);
        pages.iter().for_each(|&page| pool.release(page));
        i += 1;
    }
    let num_pages = tree.num_pages();
    let blocks = (0..num_pages / BLOCK).map(|_| {
        let start = Instant::now();
        (0..BLOCK).for_each(|_| assert_eq!(tree.evict(1, &mut pool), 1));
        start.elapsed()
    });
    let times = blocks.collect();
    (num_pages, times)
}
