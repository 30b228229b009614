//! What the device can do at most, to judge kernels by.

use std::time::Duration;

use cudarc::driver::sys;

use super::Cuda;
use crate::{Backend, DType, Result};

/// Bytes of each of the two buffers of a copy: thirty times the L2 cache of the largest chips.
const COPY_BYTES: usize = 2 << 30;
/// Rows, columns and depth of the product: large enough that its start and end do not count.
const GEMM_SIZE: usize = 8192;
/// Runs of which the median counts, after two that do not.
const RUNS: usize = 9;

/// Bytes a second that a copy on the device moves: each byte is read once and written once, and counts twice.
///
/// # Errors
/// [`KernelError::OutOfMemory`](crate::KernelError::OutOfMemory) where 4 GiB are not free; an error of the device.
pub fn copy_bandwidth(cuda: &mut Cuda) -> Result<f64> {
    const OP: &str = "copy_bandwidth";
    let mut from = cuda.tensor("source of a copy", DType::F32, COPY_BYTES / 4096, 1024)?;
    cuda.fill_random(&mut from, 0.0, 1.0, 1)?;
    let to = cuda.alloc("target of a copy", COPY_BYTES)?;
    let seconds = median(cuda, |cuda| {
        let stream = cuda.stream.raw();
        // SAFETY: both buffers have COPY_BYTES bytes and live until the event behind the copy has been waited for.
        let status = unsafe { sys::cuMemcpyDtoDAsync_v2(to.ptr(), from.buf.ptr(), COPY_BYTES, stream) };
        cuda.device.check(OP, status.result())
    })?;
    Ok(2.0 * COPY_BYTES as f64 / seconds)
}

/// Floating-point operations a second (two for each multiply-add) of a large bf16 product of noise by cuBLASLt.
///
/// # Errors
/// As [`copy_bandwidth`].
pub fn gemm_rate(cuda: &mut Cuda) -> Result<f64> {
    let mut matrix = |what| cuda.tensor(what, DType::BF16, GEMM_SIZE, GEMM_SIZE);
    let (mut out, mut x, mut weight) = (matrix("product")?, matrix("left factor")?, matrix("right factor")?);
    // Zeros would draw less power, and the clock would stay higher than it does on data.
    cuda.fill_random(&mut x, 0.0, 1.0, 1)?;
    cuda.fill_random(&mut weight, 0.0, 1.0, 2)?;
    let seconds = median(cuda, |cuda| cuda.linear(&mut out, &x, &weight, None, GEMM_SIZE))?;
    Ok(2.0 * (GEMM_SIZE as f64).powi(3) / seconds)
}

fn median(cuda: &mut Cuda, mut run: impl FnMut(&mut Cuda) -> Result<()>) -> Result<f64> {
    let mut times = Vec::<Duration>::new();
    for i in 0..RUNS + 2 {
        let time = cuda.elapsed(&mut run)?;
        if i >= 2 {
            times.push(time);
        }
    }
    times.sort();
    Ok(times[RUNS / 2].as_secs_f64())
}
