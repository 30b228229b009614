//! Sampled tokens on their way to the host, while the device goes on with the next step.

use super::Cuda;
use super::bindings::{MSGL_MAX_LOGPROBS, msgl_read_back, msgl_read_back_params};
use super::device::Event;
use super::memory::{DeviceBuf, PinnedBuf};
use crate::{KernelError, MAX_LOGPROBS, Result, SampleBuf, Samples};

const OP: &str = "read_back";
const _: () = assert!(MAX_LOGPROBS == MSGL_MAX_LOGPROBS as usize);

/// Pinned memory that a step's results are stored to, and the event that says they are there.
pub(crate) struct Landing {
    pinned: PinnedBuf,
    arrived: Event,
}

impl Drop for Landing {
    fn drop(&mut self) {
        // The memory must not be freed under a kernel that still stores to it. An error means that the device
        // is dead and stores nothing more.
        let _ = self.arrived.wait(OP);
    }
}

/// Sampled tokens on their way to the host.
pub struct CudaReadBack {
    landing: Landing,
    num_samples: usize,
    has_logprobs: bool,
}

/// See [`Backend::read_back`](crate::Backend::read_back).
pub(crate) fn read_back(
    cuda: &mut Cuda,
    out: &SampleBuf<DeviceBuf>,
    num_samples: usize,
    logprobs: bool,
) -> Result<CudaReadBack> {
    cuda.outside_capture(OP)?;
    if num_samples > out.max_samples {
        let (found, limit) = (num_samples, out.max_samples + 1);
        return Err(KernelError::Index { op: OP, what: "num_samples", found, limit });
    }
    let words = num_samples * if logprobs { 2 + 2 * MAX_LOGPROBS } else { 1 };
    let fits = |l: &Landing| l.pinned.size_bytes() >= words * 4;
    let landing = match cuda.landings.iter().position(fits) {
        Some(i) => cuda.landings.swap_remove(i),
        None => Landing {
            pinned: PinnedBuf::new(&cuda.device, (words * 4).next_power_of_two())?,
            arrived: Event::new(&cuda.device, false)?,
        },
    };
    let given = |buf: &DeviceBuf| if logprobs { buf.as_ptr::<u32>().cast_const() } else { std::ptr::null() };
    let params = msgl_read_back_params {
        dst: landing.pinned.as_ptr(),
        tokens: out.tokens.as_ptr(),
        logprobs: given(&out.logprobs),
        top_tokens: given(&out.top_tokens),
        top_logprobs: given(&out.top_logprobs),
        num_samples: num_samples as u32,
    };
    // SAFETY: `num_samples` entries fit each source and `words` the destination, which nothing else uses until
    // `wait` gives it back.
    unsafe { cuda.launch(OP, &params, msgl_read_back)? };
    landing.arrived.record(&cuda.stream)?;
    Ok(CudaReadBack { landing, num_samples, has_logprobs: logprobs })
}

/// See [`Backend::wait`](crate::Backend::wait).
pub(crate) fn wait(cuda: &mut Cuda, read_back: CudaReadBack) -> Result<Samples> {
    let CudaReadBack { landing, num_samples, has_logprobs } = read_back;
    landing.arrived.wait("wait")?;
    let mut words =
        landing.pinned.bytes().chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let mut take = |len: usize| words.by_ref().take(len).collect::<Vec<u32>>();
    let floats = |bits: Vec<u32>| bits.into_iter().map(f32::from_bits).collect();
    let mut samples = Samples { tokens: take(num_samples), ..Default::default() };
    if has_logprobs {
        samples.logprobs = floats(take(num_samples));
        samples.top_tokens = take(num_samples * MAX_LOGPROBS);
        samples.top_logprobs = floats(take(num_samples * MAX_LOGPROBS));
    }
    drop(words);
    cuda.landings.push(landing);
    Ok(samples)
}
