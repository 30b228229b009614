//! The engine's thread: callers that come, go, give up and fail.

use std::sync::mpsc;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use minisgl_engine::config::EngineConfig;
use minisgl_engine::request::{Event, FinishReason, Request, RequestParams, Sink};
use minisgl_engine::{DType, Engine, EngineError, StepTimes, Submission};
use minisgl_kernels::null::{Null, NullOptions};
use minisgl_tests::harness::{ChannelSink, Generated, collect, greedy, run, try_run};
use minisgl_tests::models::{ModelKind, TestModel, random_tokens};

/// An engine without arithmetic over a pool of `num_pages` pages of 4, which checks every page that it reads.
fn engine(num_pages: usize) -> Engine {
    engine_with(|config| config.num_page_override = Some(num_pages))
}

fn engine_with(edit: impl FnOnce(&mut EngineConfig)) -> Engine {
    let model = TestModel::random(ModelKind::Llama, DType::F32, 1, 1, &[]);
    let mut config = EngineConfig {
        use_dummy_weight: true,
        page_size: 4,
        num_page_override: Some(256),
        max_running_req: 16,
        max_extend_tokens: Some(64),
        overlap: Some(true),
        ..EngineConfig::new(model.dir())
    };
    edit(&mut config);
    let vocab = model.oracle.spec.vocab;
    Engine::start_with(config, None, move || Ok(Null::new(NullOptions { vocab, checked: true })))
        .expect("an engine")
}

fn requests(seed: u64, num: usize) -> Vec<Request> {
    (0..num).map(|i| greedy(&random_tokens(seed, i as u32, 1 + 7 * i % 40, 128), 5 + i % 13)).collect()
}

/// Waits until nothing runs, then checks that nobody holds a page.
fn is_clean(engine: &Engine) {
    for _ in 0..2000 {
        let counters = engine.stats().counters;
        if counters.num_running == 0 && counters.num_waiting == 0 {
            assert_eq!(counters.pages_used, 0);
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("requests are left: {:?}", engine.stats());
}

#[test]
fn callers_from_several_threads_share_the_engine() {
    let engine = engine(256);
    let expected: Vec<Vec<Generated>> = (0..6).map(|seed| run(&engine, &requests(seed, 20))).collect();
    let barrier = Barrier::new(6);
    std::thread::scope(|scope| {
        let (engine, barrier) = (&engine, &barrier);
        let callers: Vec<_> = (0..6)
            .map(|seed| {
                scope.spawn(move || {
                    barrier.wait();
                    run(engine, &requests(seed, 20))
                })
            })
            .collect();
        for (caller, expected) in callers.into_iter().zip(&expected) {
            for (found, expected) in caller.join().expect("a caller").iter().zip(expected) {
                assert_eq!(found.tokens, expected.tokens);
            }
        }
    });
    is_clean(&engine);
}

#[test]
fn one_invalid_request_refuses_the_whole_call_and_nothing_runs() {
    let engine = engine(64);
    let (sender, receiver) = mpsc::channel();
    let submit = |i: usize, request: Request| Submission {
        request,
        sinks: vec![Box::new(ChannelSink(i, sender.clone()))],
    };
    let error =
        engine.submit(vec![submit(0, greedy(&[1, 2], 3)), submit(1, greedy(&[], 3))]).expect_err("empty");
    assert!(error.to_string().contains("empty"), "{error}");
    drop(sender);
    assert!(receiver.recv().is_err(), "no event for a call that was refused");
    assert_eq!(engine.stats().counters.steps, 0);
}

#[test]
fn a_request_that_can_never_fit_is_refused_with_both_numbers() {
    let engine = engine(8);
    let error = engine.validate(&greedy(&[1; 40], 1)).expect_err("40 tokens in 32 slots").to_string();
    assert!(error.contains("40") || error.contains("11"), "{error}");
    assert!(error.contains("32") || error.contains('8'), "{error}");
    // The largest that fits does run.
    let outputs = run(&engine, &[greedy(&[1; 31], 1000)]);
    assert_eq!((outputs[0].tokens.len(), outputs[0].reason), (1, FinishReason::Length));
}

/// The longest sequence ends inside of a page: the table that the runner allocates must have a column for it.
///
/// Break: `div_ceil` of `max_pages` in `Runner::new` (to `/`).
#[test]
fn fault_06_page_table_of_whole_pages() {
    let engine = engine_with(|config| (config.page_size, config.max_seq_len_override) = (16, Some(199)));
    let outputs = run(&engine, &[greedy(&[5; 150], 1000)]);
    assert_eq!((outputs[0].tokens.len(), outputs[0].reason), (49, FinishReason::Length));
}

#[test]
fn abort_ends_one_request_and_leaves_its_neighbour() {
    let engine = engine(256);
    let expected = run(&engine, &[greedy(&[7, 8, 9], 200)]);
    let (sender, receiver) = mpsc::channel();
    let submit = |i: usize, prompt: &[u32]| Submission {
        request: greedy(prompt, 200),
        sinks: vec![Box::new(ChannelSink(i, sender.clone()))],
    };
    let ids = engine.submit(vec![submit(0, &[1, 2, 3]), submit(1, &[7, 8, 9])]).expect("valid requests");
    // Abort from another thread, once it runs.
    let first = receiver.recv_timeout(Duration::from_secs(60)).expect("an event");
    assert!(matches!(first.1, Event::Token { .. }));
    std::thread::scope(|scope| scope.spawn(|| engine.abort(ids[0])).join().expect("abort"));
    engine.abort(ids[0]);
    let outputs = collect(&receiver, 2);
    let aborted = outputs[0].as_ref().expect("an output");
    assert!(aborted.reason == FinishReason::Abort || aborted.tokens.len() >= 199, "{aborted:?}");
    let other = outputs[1].as_ref().expect("an output");
    assert!(expected[0].tokens.ends_with(&other.tokens), "the neighbour of an aborted request");
    assert_eq!(other.reason, FinishReason::Length);
    is_clean(&engine);
}

#[test]
fn the_latest_steps_and_their_times() {
    let engine = engine(256);
    run(&engine, &requests(3, 4));
    is_clean(&engine);
    let (steps, stats) = (engine.recent_steps(), engine.stats());
    let launched: Vec<_> = steps.iter().filter(|step| step.num_seqs > 0).collect();
    assert_eq!(launched.len() as u64, stats.counters.steps);
    assert!(launched.iter().any(|step| step.is_decode) && launched.iter().any(|step| !step.is_decode));
    let sum = |of: fn(&StepTimes) -> Duration| steps.iter().map(|step| of(&step.times)).sum::<Duration>();
    assert_eq!(sum(|times| times.schedule), stats.schedule_time);
    assert_eq!(sum(|times| times.launch), stats.launch_time);
    assert_eq!(sum(|times| times.wait), stats.wait_time);
    assert_eq!(sum(|times| times.commit), stats.commit_time);
    let all = sum(|times| times.schedule + times.launch + times.wait + times.commit + times.other);
    assert_eq!(all, stats.busy_time);
}

/// Keeps its events back until it is flushed.
struct Patient {
    events: Vec<Event>,
    sender: mpsc::Sender<(usize, Vec<Event>)>,
    index: usize,
}

impl Sink for Patient {
    fn send(&mut self, event: Event) -> bool {
        self.events.push(event);
        true
    }

    fn flush(&mut self) {
        drop(self.sender.send((self.index, std::mem::take(&mut self.events))));
    }
}

#[test]
fn every_sink_is_flushed_after_every_step() {
    let engine = engine(256);
    let (sender, receiver) = mpsc::channel();
    let sink =
        |index| Box::new(Patient { events: Vec::new(), sender: sender.clone(), index }) as Box<dyn Sink>;
    let submit =
        |(i, request): (usize, &Request)| Submission { request: request.clone(), sinks: vec![sink(i)] };
    let requests: Vec<_> = (0..3).map(|i| greedy(&[i + 1, 2, 3], 5 + i as usize)).collect();
    engine.submit(requests.iter().enumerate().map(submit).collect()).expect("valid requests");
    drop(sender);
    let mut num_tokens = [0; 3];
    while let Ok((i, events)) = receiver.recv_timeout(Duration::from_secs(60)) {
        let tokens = events.iter().filter(|event| matches!(event, Event::Token { .. })).count();
        num_tokens[i] += tokens;
        assert!(tokens == 1 && events.len() <= 2, "request {i} is flushed once a step: {events:?}");
        let is_last = matches!(events.last(), Some(Event::Finished { .. }));
        assert_eq!(is_last, num_tokens[i] == 5 + i, "request {i}: {events:?}");
    }
    assert_eq!(num_tokens, [5, 6, 7]);
}

#[test]
fn a_receiver_that_is_gone_aborts_its_request() {
    let engine = engine(256);
    let (sender, receiver) = mpsc::channel();
    let sinks: Vec<Box<dyn Sink>> = vec![Box::new(ChannelSink(0, sender))];
    engine.submit(vec![Submission { request: greedy(&[1, 2, 3], 400), sinks }]).expect("a valid request");
    receiver.recv_timeout(Duration::from_secs(60)).expect("an event");
    drop(receiver);
    is_clean(&engine);
    assert!(engine.stats().counters.output_tokens < 400, "it went on to its end");
}

#[test]
fn several_completions_of_one_prompt() {
    let engine = engine(256);
    let params = RequestParams { max_tokens: 30, temperature: 1.0, seed: 3, ..RequestParams::default() };
    let request = Request { token_ids: random_tokens(9, 9, 50, 128), params };
    let alone = run(&engine, std::slice::from_ref(&request));
    let (sender, receiver) = mpsc::channel();
    let sinks = (0..4).map(|i| Box::new(ChannelSink(i, sender.clone())) as Box<dyn Sink>).collect();
    let ids = engine.submit(vec![Submission { request, sinks }]).expect("a valid request");
    assert_eq!(ids.len(), 4);
    let outputs: Vec<_> = collect(&receiver, 4).into_iter().map(|o| o.expect("an output").tokens).collect();
    assert_eq!(outputs[0], alone[0].tokens, "the first completion draws with the request's own seed");
    for i in 1..4 {
        assert_ne!(outputs[i], outputs[0], "completion {i} draws with a seed of its own");
    }
    is_clean(&engine);
}

#[test]
fn dropping_the_engine_tells_every_caller() {
    let engine = engine(256);
    let (sender, receiver) = mpsc::channel();
    let submit = |i: usize| Submission {
        request: greedy(&[i as u32 + 1; 20], 400),
        sinks: vec![Box::new(ChannelSink(i, sender.clone()))],
    };
    engine.submit((0..40).map(submit).collect()).expect("valid requests");
    drop(engine);
    let ended = collect(&receiver, 40);
    let shut_down =
        ended.iter().filter(|o| matches!(o, Err(EngineError::Dead(why)) if why.contains("shut down")));
    assert!(shut_down.count() > 0, "{ended:?}");
}

/// A sink that panics stands for any defect on the engine's thread.
struct Grenade;

impl Sink for Grenade {
    fn send(&mut self, _: Event) -> bool {
        panic!("boom");
    }
}

#[test]
fn a_panic_on_the_engine_thread_is_an_error_on_every_caller() {
    let engine = Arc::new(engine(256));
    let waiting = {
        let engine = Arc::clone(&engine);
        std::thread::spawn(move || try_run(&engine, &[greedy(&[4, 5], 500)]))
    };
    while engine.stats().counters.steps == 0 {
        std::thread::yield_now();
    }
    engine
        .submit(vec![Submission { request: greedy(&[1, 2, 3], 4), sinks: vec![Box::new(Grenade)] }])
        .expect("a valid request");
    for result in waiting.join().expect("a caller") {
        // The other request may just have ended before the panic.
        if let Err(error) = result {
            assert!(error.to_string().contains("boom"), "{error}");
        }
    }
    // Whoever comes later is told, too.
    let error = loop {
        let (sender, receiver) = mpsc::channel();
        let sinks: Vec<Box<dyn Sink>> = vec![Box::new(ChannelSink(0, sender))];
        match engine.submit(vec![Submission { request: greedy(&[1], 1), sinks }]) {
            Err(error) => break error,
            Ok(_) => drop(receiver.recv_timeout(Duration::from_secs(60))),
        }
    };
    assert!(error.to_string().contains("boom"), "{error}");
}

#[test]
fn two_engines_live_in_one_process() {
    let (one, two) = (engine(64), engine(128));
    let requests = requests(5, 10);
    let expected = run(&one, &requests);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| run(&two, &requests));
        assert_eq!(run(&one, &requests).len(), 10);
        for (a, b) in other.join().expect("a caller").iter().zip(&expected) {
            assert_eq!(a.tokens, b.tokens);
        }
    });
}

#[test]
fn an_engine_that_cannot_start_says_why_and_leaves_no_thread() {
    let error = Engine::start(EngineConfig::new("/no/such/dir"), None).map(|_| ()).expect_err("no directory");
    assert!(error.to_string().contains("/no/such/dir"), "{error}");
    let model = TestModel::random(ModelKind::Llama, DType::F32, 1, 1, &[]);
    let config = EngineConfig::new(model.dir());
    let result = Engine::start_with(config, None, || -> Result<Null, _> { panic!("no backend") });
    let error = result.map(|_| ()).expect_err("a panic at the start");
    assert!(error.to_string().contains("panicked"), "{error}");
}
