//! What goes wrong on a GPU machine: each is a typed error on every caller that waits, the process lives, nothing
//! hangs. Where there is no GPU, the tests that need one say that they were skipped.
#![cfg(feature = "cuda")]

#[path = "device_errors/child.rs"]
mod child;

use std::sync::mpsc;
use std::time::Duration;

use child::{Child, is_child};
use minisgl_engine::config::{Device, EngineConfig};
use minisgl_engine::{DType, Engine, EngineError, Submission};
use minisgl_kernels::cuda::{Cuda, CudaOptions, num_devices};
use minisgl_kernels::{Backend, KernelError, SeqState, StepInputs, Tensor};
use minisgl_tests::harness::{ChannelSink, greedy, run, try_run};
use minisgl_tests::models::{ModelKind, TestModel};
use minisgl_tests::tap::{Tap, Tapped};

fn has_gpu() -> bool {
    let has_gpu = num_devices() > 0;
    if !has_gpu {
        println!("skipped: no GPU");
    }
    has_gpu
}

fn model() -> TestModel {
    TestModel::random(ModelKind::Llama, DType::F32, 1, 1, &[])
}

fn config(model: &TestModel, device: Device) -> EngineConfig {
    EngineConfig {
        dtype: Some(DType::F32),
        device,
        num_page_override: Some(256),
        max_running_req: 16,
        max_extend_tokens: Some(64),
        threads: Some(1),
        ..EngineConfig::new(model.dir())
    }
}

/// The error of an engine on the first GPU, which must not start.
fn start_error(config: EngineConfig) -> EngineError {
    Engine::start(config, None).map(|_| ()).expect_err("an engine that cannot start")
}

/// The CPU still works in this process.
fn cpu_works(model: &TestModel) {
    let engine = Engine::start(config(model, Device::Cpu), None).expect("an engine on the CPU");
    assert_eq!(run(&engine, &[greedy(&[1, 2, 3], 4)])[0].tokens.len(), 4);
}

fn is_no_device(error: &EngineError, parts: &[&str]) {
    assert!(matches!(error, EngineError::Kernel(KernelError::NoDevice { .. })), "{error:?}");
    for part in parts {
        assert!(error.to_string().contains(part), "'{part}' is not in: {error}");
    }
}

/// The loader finds a libcuda that is no library before any other.
#[test]
fn no_driver() {
    Child::new("no_driver_child").without_driver().succeeds();
}

#[test]
#[ignore = "runs in a process of its own, started by no_driver"]
fn no_driver_child() {
    if !is_child() {
        return;
    }
    assert_eq!(num_devices(), 0);
    let model = model();
    let error = start_error(config(&model, Device::Cuda(0)));
    is_no_device(&error, &["cuda:0", "no NVIDIA driver", "libcuda.so.1", "'cpu'"]);
    // Nobody asked for a GPU, so none is missed.
    let engine = Engine::start(config(&model, Device::Auto), None).expect("an engine on the CPU");
    assert!(engine.info().device.starts_with("cpu"), "{}", engine.info().device);
    cpu_works(&model);
}

#[test]
fn no_gpu() {
    if has_gpu() {
        Child::new("no_gpu_child").env("CUDA_VISIBLE_DEVICES", "").succeeds();
    }
}

#[test]
#[ignore = "runs in a process of its own, started by no_gpu"]
fn no_gpu_child() {
    if !is_child() {
        return;
    }
    assert_eq!(num_devices(), 0);
    let model = model();
    let error = start_error(config(&model, Device::Cuda(0)));
    is_no_device(&error, &["cuda:0", "finds no GPU", "CUDA_VISIBLE_DEVICES"]);
    cpu_works(&model);
}

#[test]
fn a_gpu_that_is_not_there() {
    if has_gpu() {
        let model = model();
        let error = start_error(config(&model, Device::Cuda(4096)));
        is_no_device(&error, &["cuda:4096", &num_devices().to_string()]);
    }
}

#[test]
fn out_of_device_memory() {
    if !has_gpu() {
        return;
    }
    let mut cuda = Cuda::open(CudaOptions::default()).expect("a GPU that can be used");
    let total = cuda.memory().total_bytes;
    match cuda.alloc("a test's memory", 2 * total) {
        Err(error @ KernelError::OutOfMemory { what, wanted_bytes, free_bytes, total_bytes, .. }) => {
            assert_eq!((what, wanted_bytes, total_bytes), ("a test's memory", 2 * total, total));
            assert!(free_bytes > 0 && free_bytes < total, "{free_bytes}");
            for part in ["a test's memory", &(2 * total).to_string(), "memory_ratio", "max_running_req"] {
                assert!(error.to_string().contains(part), "'{part}' is not in: {error}");
            }
        }
        other => panic!("twice the memory of the device: {other:?}"),
    }
    // The device is as good as before.
    cuda.alloc("a test's memory", 1 << 20).expect("a mebibyte");
    cuda.synchronize().expect("no error left behind");
}

#[test]
fn more_kv_pages_than_memory() {
    if !has_gpu() {
        return;
    }
    let model = model();
    // 3 layers of 2 * 16 slots of 2 heads of 16 f32: 12 KiB a page.
    let huge = EngineConfig { num_page_override: Some(1 << 27), ..config(&model, Device::Cuda(0)) };
    let error = start_error(huge);
    assert!(matches!(error, EngineError::Kernel(KernelError::OutOfMemory { .. })), "{error:?}");
    for part in ["KV pages", "are free", "num_page_override"] {
        assert!(error.to_string().contains(part), "'{part}' is not in: {error}");
    }
    // What the failed start held is free again.
    let engine = Engine::start(config(&model, Device::Cuda(0)), None).expect("256 pages");
    assert_eq!(run(&engine, &[greedy(&[1, 2, 3], 4)])[0].tokens.len(), 4);
}

#[test]
fn a_memory_ratio_that_leaves_no_page() {
    if !has_gpu() {
        return;
    }
    let model = model();
    let tiny =
        EngineConfig { num_page_override: None, memory_ratio: Some(1e-6), ..config(&model, Device::Cuda(0)) };
    let error = start_error(tiny).to_string();
    for part in ["memory_ratio 0.000001", "cuda:0", "MiB", "max_extend_tokens"] {
        assert!(error.contains(part), "'{part}' is not in: {error}");
    }
}

/// Spoils a step: replays a graph over memory that was freed. Nothing else reaches an address that is not mapped,
/// as the ops check their arguments and the kernels their indices.
struct Saboteur {
    steps_left: usize,
}

impl Saboteur {
    fn spoil(cuda: &mut Cuda) -> Result<(), KernelError> {
        // Large enough to go back to the driver at once.
        let mut gone = cuda.tensor("freed before it is used", DType::F32, 1 << 14, 1 << 12)?;
        let graph = cuda.capture(&mut |cuda| cuda.fill_random(&mut gone, 0.0, 1.0, 0))?;
        drop(gone);
        cuda.replay(&graph)
    }
}

impl Tap<Cuda> for Saboteur {
    fn begun(
        &mut self,
        cuda: &mut Cuda,
        step: &StepInputs,
        _: &mut SeqState<<Cuda as Backend>::Buf>,
    ) -> Result<(), KernelError> {
        // With the callers there are five sequences or more.
        self.steps_left -= usize::from(step.num_seqs() >= 5 && self.steps_left > 0);
        if self.steps_left == 0 { Self::spoil(cuda) } else { Ok(()) }
    }

    fn logits(&mut self, _: &mut Cuda, _: &Tensor<<Cuda as Backend>::Buf>) -> Result<(), KernelError> {
        Ok(())
    }
}

/// A kernel that writes where nothing is takes the context with it: for five callers, for those that come later,
/// and not for the process.
#[test]
fn an_error_in_a_kernel() {
    if has_gpu() {
        Child::new("an_error_in_a_kernel_child").succeeds();
    }
}

#[test]
#[ignore = "runs in a process of its own, started by an_error_in_a_kernel"]
fn an_error_in_a_kernel_child() {
    if !is_child() {
        return;
    }
    let model = model();
    let config = EngineConfig { cuda_graph_bs: Some(Vec::new()), ..config(&model, Device::Cuda(0)) };
    let engine = Engine::start_with(config.clone(), None, || {
        Ok(Tapped::new(Cuda::open(CudaOptions::default())?, Saboteur { steps_left: 20 }))
    })
    .expect("an engine");
    std::thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        let submit = |i: usize| Submission {
            request: greedy(&[i as u32 + 1; 3], 400),
            sinks: vec![Box::new(ChannelSink(i, sender.clone()))],
        };
        // In one call, so that all five decode together; each waits on a thread of its own for the sixth.
        engine.submit((0..5).map(submit).collect()).expect("valid requests");
        let late = scope.spawn(|| {
            while engine.stats().counters.steps < 10 {
                std::thread::yield_now();
            }
            try_late(&engine)
        });
        for (i, outcome) in minisgl_tests::harness::collect(&receiver, 5).into_iter().enumerate() {
            is_device_error(&format!("caller {i}"), &outcome.expect_err("no output of 400 tokens"));
        }
        if let Some(error) = late.join().expect("a caller") {
            is_device_error("the late caller", &error);
        }
    });
    // Whoever comes now is told that the engine is dead, and why.
    let error = engine.submit(vec![Submission {
        request: greedy(&[1], 1),
        sinks: vec![Box::new(ChannelSink(0, mpsc::channel().0))],
    }]);
    let error = error.expect_err("a dead engine");
    assert!(matches!(error, EngineError::Dead(_)), "{error:?}");
    for part in ["the engine has stopped", "failed on cuda:0"] {
        assert!(error.to_string().contains(part), "'{part}' is not in: {error}");
    }
    drop(engine);
    // Another engine on the lost device either fails with a type or works; it does not hang.
    match Engine::start(config, None) {
        Err(EngineError::Kernel(error)) => println!("a second engine: {error}"),
        Err(other) => panic!("another type: {other:?}"),
        Ok(engine) => println!("a second engine works: {:?}", try_run(&engine, &[greedy(&[1, 2, 3], 4)])),
    }
    cpu_works(&model);
}

/// A request that joins while the others run; none if the engine was dead before it came.
fn try_late(engine: &Engine) -> Option<EngineError> {
    let (sender, receiver) = mpsc::channel();
    let request = greedy(&[9, 9], 400);
    let sinks: Vec<Box<dyn minisgl_engine::request::Sink>> = vec![Box::new(ChannelSink(0, sender))];
    engine.submit(vec![Submission { request, sinks }]).ok()?;
    loop {
        match receiver.recv_timeout(Duration::from_secs(60)).expect("an event").1 {
            minisgl_engine::request::Event::Token { .. } => {}
            minisgl_engine::request::Event::Failed(error) => return Some(error),
            other => panic!("an end in spite of everything: {other:?}"),
        }
    }
}

fn is_device_error(who: &str, error: &EngineError) {
    match error {
        EngineError::Kernel(KernelError::Device { device, message, .. }) => {
            println!("{who}: {error}");
            assert!(device.starts_with("cuda:0"), "{device}");
            assert!(message.contains("CUDA_ERROR") || message.contains("cudaError"), "{message}");
        }
        // Its command was still in the queue.
        EngineError::Dead(why) => assert!(why.contains("cuda:0"), "{who}: {why}"),
        other => panic!("{who}: {other:?}"),
    }
}

/// The pinned staging of a step is not written again before its copy has ended.
///
/// Without `dst.staging[index].uploaded.wait(OP)?` in `cuda/inputs.rs` the host, which is far ahead of a busy device,
/// writes the tokens of step k + 2 over those of step k, whose copy waits for the device to consume step k - 2.
#[test]
fn fault_08_staging_is_not_reused_before_its_copy_ended() {
    const TOKENS: usize = 1024;
    const STEPS: usize = 8;
    if !has_gpu() {
        return;
    }
    let mut cuda = Cuda::open(CudaOptions::default()).expect("a GPU that can be used");
    let check = |cuda: &mut Cuda| -> Result<Vec<Vec<f32>>, KernelError> {
        let mut inputs = cuda.inputs(TOKENS, 1, 1)?;
        let mut state = cuda.seq_state(1, 1, STEPS)?;
        let mut table = cuda.tensor("table", DType::F32, STEPS, 4)?;
        let values: Vec<u8> = (0..STEPS * 4).flat_map(|i| (i as f32 / 4.0).floor().to_le_bytes()).collect();
        cuda.load_rows(&mut table, 0, &values, DType::F32)?;
        // Fills of a gibibyte keep the device behind the host.
        let mut ballast = cuda.tensor("ballast", DType::F32, 1 << 14, 1 << 14)?;
        let mut outs = Vec::new();
        for _ in 0..STEPS {
            outs.push(cuda.tensor("out", DType::F32, TOKENS, 4)?);
        }
        cuda.synchronize()?;
        for (step, out) in outs.iter_mut().enumerate() {
            for _ in 0..8 {
                cuda.fill_random(&mut ballast, 0.0, 1.0, step as u64)?;
            }
            let inputs_of_step = StepInputs {
                token_ids: vec![step as i32; TOKENS],
                positions: (0..TOKENS as u32).collect(),
                slots: (0..TOKENS as u32).collect(),
                cu_q_lens: vec![0, TOKENS as u32],
                kv_lens: vec![TOKENS as u32],
                seq_rows: vec![0],
                ..StepInputs::default()
            };
            cuda.begin_step(&mut inputs, &inputs_of_step, &mut state, &mut [])?;
            cuda.embedding(out, &table, &inputs, &state)?;
        }
        let mut found = Vec::new();
        for out in &outs {
            let mut bytes = vec![0; TOKENS * 16];
            cuda.read(&out.buf, 0, &mut bytes)?;
            found.push(DType::F32.widen(&bytes));
        }
        Ok(found)
    };
    for (step, found) in check(&mut cuda).expect("no error").iter().enumerate() {
        let wrong = found.iter().filter(|&&x| x != step as f32).count();
        assert_eq!(wrong, 0, "step {step}: {wrong} of {} values are another step's", found.len());
    }
}
