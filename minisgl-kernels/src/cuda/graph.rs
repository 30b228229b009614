//! Steps recorded as CUDA graphs, and time between events.

use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::{result, sys};

use super::Cuda;
use super::device::{Device, Event};
use crate::{KernelError, Result};

/// A recorded sequence of ops. The memory that the ops were given must live as long.
pub struct CudaGraph {
    /// For contexts of up to `max_short` positions.
    short: Exec,
    max_short: usize,
    /// For longer ones, where they need another recording.
    long: Option<Exec>,
}

struct Exec {
    exec: sys::CUgraphExec,
    device: Arc<Device>,
}

// SAFETY: a graph may be launched from any thread, one at a time, which `&mut Cuda` in `replay` ensures; it is
// destroyed once, in drop.
unsafe impl Send for Exec {}

impl Drop for Exec {
    fn drop(&mut self) {
        if self.device.make_current().is_ok() {
            // SAFETY: instantiated in `capture_for`, destroyed here only. A launch in flight keeps its own reference.
            let _ = unsafe { result::graph::exec_destroy(self.exec) };
        }
    }
}

/// How often a capture is begun again that another thread has spoiled.
const MAX_ATTEMPTS: usize = 64;

/// See [`Backend::capture`](crate::Backend::capture).
///
/// A capture is short, and is invalidated when another thread waits for the whole context meanwhile, as a library may
/// that this process uses beside the engine: then it is begun again, and `body` called again.
pub(crate) fn capture(cuda: &mut Cuda, body: &mut dyn FnMut(&mut Cuda) -> Result<()>) -> Result<CudaGraph> {
    cuda.outside_capture("capture")?;
    let (short, max_short) = capture_for(cuda, 0, body)?;
    let long = match max_short {
        usize::MAX => None,
        _ => Some(capture_for(cuda, usize::MAX, body)?.0),
    };
    Ok(CudaGraph { short, max_short, long })
}

/// The same for steps as long as the one begun last alone: where a graph is not kept, one recording is enough.
pub(crate) fn capture_step(
    cuda: &mut Cuda,
    body: &mut dyn FnMut(&mut Cuda) -> Result<()>,
) -> Result<CudaGraph> {
    cuda.outside_capture("capture")?;
    let (mut recording, max_short) = capture_for(cuda, 0, body)?;
    if cuda.lengths.of_step() > max_short {
        (recording, _) = capture_for(cuda, usize::MAX, body)?;
    }
    Ok(CudaGraph { short: recording, max_short: usize::MAX, long: None })
}

/// A recording for contexts of `max_kv_len` positions, and the longest ones that it is meant for.
fn capture_for(
    cuda: &mut Cuda,
    max_kv_len: usize,
    body: &mut dyn FnMut(&mut Cuda) -> Result<()>,
) -> Result<(Exec, usize)> {
    const OP: &str = "capture";
    let mut attempt = 1;
    let mut limit;
    let graph = loop {
        cuda.lengths.begin_recording(max_kv_len);
        let recording = record(cuda, body);
        limit = cuda.lengths.end_recording();
        match recording? {
            Recording::Graph(graph) => break graph,
            Recording::Failed(error) => return Err(error),
            Recording::Invalidated(error) if attempt == MAX_ATTEMPTS => return Err(error),
            Recording::Invalidated(_) => attempt += 1,
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    // SAFETY: the graph was just made; once instantiated it is not needed any more, and is destroyed either way.
    let (exec, _) = unsafe {
        let exec = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
        (exec, result::graph::destroy(graph))
    };
    let exec = cuda.device.check(OP, exec)?;
    let graph = Exec { exec, device: cuda.device.clone() };
    // SAFETY: graph and stream are alive. Uploading now takes the work off the first replay.
    cuda.device.check(OP, unsafe { result::graph::upload(graph.exec, cuda.stream.raw()) })?;
    Ok((graph, limit))
}

/// What came of an attempt to record.
enum Recording {
    Graph(sys::CUgraph),
    /// An op refused its arguments, or the device is lost.
    Failed(KernelError),
    /// Somebody else disturbed it. The stream is as before.
    Invalidated(KernelError),
}

fn record(cuda: &mut Cuda, body: &mut dyn FnMut(&mut Cuda) -> Result<()>) -> Result<Recording> {
    const OP: &str = "capture";
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    // SAFETY: the stream lives as long as `cuda`.
    cuda.device.check(OP, unsafe { result::stream::begin_capture(cuda.stream.raw(), mode) })?;
    cuda.is_capturing = true;
    let recorded = body(cuda);
    cuda.is_capturing = false;
    // The capture ends also where the body failed: the stream must be usable afterwards.
    // SAFETY: the stream is the one whose capture began above.
    let ended = unsafe { result::stream::end_capture(cuda.stream.raw()) };
    let is_invalidated =
        ended.as_ref().is_err_and(|e| e.0 == sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    let error = match (recorded, cuda.device.check(OP, ended)) {
        (Ok(()), Ok(graph)) => return Ok(Recording::Graph(graph)),
        (Ok(()), Err(error)) => error,
        (Err(error), ended) => {
            if let Ok(graph) = ended
                && !graph.is_null()
            {
                // SAFETY: the graph was just made and nothing else refers to it.
                let _ = unsafe { result::graph::destroy(graph) };
            }
            error
        }
    };
    Ok(if is_invalidated { Recording::Invalidated(error) } else { Recording::Failed(error) })
}

/// See [`Backend::replay`](crate::Backend::replay).
pub(crate) fn replay(cuda: &mut Cuda, graph: &CudaGraph) -> Result<()> {
    cuda.outside_capture("replay")?;
    let recording = match &graph.long {
        Some(long) if cuda.lengths.of_step() > graph.max_short => long,
        _ => &graph.short,
    };
    // SAFETY: graph and stream are alive.
    cuda.device.check("replay", unsafe { result::graph::launch(recording.exec, cuda.stream.raw()) })
}

/// See [`Backend::elapsed`](crate::Backend::elapsed).
pub(crate) fn elapsed(cuda: &mut Cuda, body: &mut dyn FnMut(&mut Cuda) -> Result<()>) -> Result<Duration> {
    cuda.outside_capture("elapsed")?;
    let (start, end) = (Event::new(&cuda.device, true)?, Event::new(&cuda.device, true)?);
    start.record(&cuda.stream)?;
    body(cuda)?;
    end.record(&cuda.stream)?;
    end.wait("elapsed")?;
    Ok(Duration::from_secs_f64(f64::from(end.elapsed_ms(&start)?) * 1e-3))
}
