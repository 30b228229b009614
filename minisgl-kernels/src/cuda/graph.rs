//! Steps recorded as CUDA graphs, and time between events.

use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::{result, sys};

use super::Cuda;
use super::device::{Device, Event};
use crate::Result;

/// A recorded sequence of ops. The memory that the ops were given must live as long.
pub struct CudaGraph {
    exec: sys::CUgraphExec,
    device: Arc<Device>,
}

// SAFETY: a graph may be launched from any thread, one at a time, which `&mut Cuda` in `replay` ensures; it is
// destroyed once, in drop.
unsafe impl Send for CudaGraph {}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        if self.device.make_current().is_ok() {
            // SAFETY: instantiated in `capture`, destroyed here only. A launch in flight keeps its own reference.
            let _ = unsafe { result::graph::exec_destroy(self.exec) };
        }
    }
}

/// See [`Backend::capture`](crate::Backend::capture).
pub(crate) fn capture(cuda: &mut Cuda, body: &mut dyn FnMut(&mut Cuda) -> Result<()>) -> Result<CudaGraph> {
    const OP: &str = "capture";
    cuda.outside_capture(OP)?;
    cuda.blas.end_measurements();
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    // SAFETY: the stream lives as long as `cuda`.
    cuda.device.check(OP, unsafe { result::stream::begin_capture(cuda.stream.raw(), mode) })?;
    cuda.is_capturing = true;
    let recorded = body(cuda);
    cuda.is_capturing = false;
    // The capture ends also where the body failed: the stream must be usable afterwards.
    // SAFETY: the stream is the one whose capture began above.
    let ended = unsafe { result::stream::end_capture(cuda.stream.raw()) };
    let graph = match (recorded, ended) {
        (Ok(()), Ok(graph)) => graph,
        (Ok(()), Err(e)) => return cuda.device.check(OP, Err(e)),
        (Err(error), ended) => {
            if let Ok(graph) = ended
                && !graph.is_null()
            {
                // SAFETY: the graph was just made and nothing else refers to it.
                let _ = unsafe { result::graph::destroy(graph) };
            }
            return Err(error);
        }
    };
    // SAFETY: the graph was just made; once instantiated it is not needed any more, and is destroyed either way.
    let (exec, _) = unsafe {
        let exec = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
        (exec, result::graph::destroy(graph))
    };
    let exec = cuda.device.check(OP, exec)?;
    let graph = CudaGraph { exec, device: cuda.device.clone() };
    // SAFETY: graph and stream are alive. Uploading now takes the work off the first replay.
    cuda.device.check(OP, unsafe { result::graph::upload(graph.exec, cuda.stream.raw()) })?;
    Ok(graph)
}

/// See [`Backend::replay`](crate::Backend::replay).
pub(crate) fn replay(cuda: &mut Cuda, graph: &CudaGraph) -> Result<()> {
    cuda.outside_capture("replay")?;
    // SAFETY: graph and stream are alive.
    cuda.device.check("replay", unsafe { result::graph::launch(graph.exec, cuda.stream.raw()) })
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
