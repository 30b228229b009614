//! Weights from host memory to the device, through pinned staging, and noise instead of weights.
//!
//! The source is as a rule a mapped file: a copy straight from it would be made by the driver page by page on
//! one thread. Here several threads fill pinned slots, which the device then fetches at the speed of the bus;
//! where dtypes differ, the kernel that converts does the fetching.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use cudarc::driver::sys;

use super::bindings::{msgl_convert, msgl_convert_params, msgl_fill_random, msgl_fill_random_params};
use super::device::Event;
use super::memory::{DeviceBuf, PinnedBuf};
use super::{Cuda, check};
use crate::{DType, Result, Tensor};

const OP: &str = "load_rows";
/// Large enough for the bus, small enough that the first copy starts soon.
const SLOT_BYTES: usize = 4 << 20;
/// One thread copies some 5 GB/s from the page cache; the bus takes 25 to 55.
const MAX_READERS: usize = 8;
/// Slots a reader alternates between: one fills while the device fetches the other.
const SLOTS_PER_READER: usize = 2;

/// Pinned memory and the event after which it may be filled again.
pub(crate) struct Slot {
    pinned: PinnedBuf,
    fetched: Event,
}

impl Drop for Slot {
    fn drop(&mut self) {
        // The device may still be fetching; an error means that it is dead and fetches nothing more.
        let _ = self.fetched.wait(OP);
    }
}

/// See [`Backend::load_rows`](crate::Backend::load_rows).
pub(crate) fn load_rows(
    cuda: &mut Cuda,
    dst: &mut Tensor<DeviceBuf>,
    first_row: usize,
    src: &[u8],
    src_dtype: DType,
) -> Result<()> {
    cuda.outside_capture(OP)?;
    let row_bytes = dst.cols * src_dtype.size_bytes();
    let rows = src.len().checked_div(row_bytes).unwrap_or(0);
    check::same(OP, "src.len", src.len(), rows * row_bytes)?;
    check::below(OP, "first_row + rows of src", first_row + rows, dst.rows + 1)?;
    check::below(OP, "dst", dst.size_bytes(), dst.buf.size_bytes() + 1)?;
    if src.is_empty() {
        return Ok(());
    }
    let num_chunks = src.len().div_ceil(SLOT_BYTES);
    let num_readers =
        num_chunks.min(MAX_READERS).min(thread::available_parallelism().map_or(1, std::num::NonZero::get));
    while cuda.slots.len() < num_readers * SLOTS_PER_READER {
        let pinned = PinnedBuf::new(&cuda.device, SLOT_BYTES)?;
        cuda.slots.push(Slot { pinned, fetched: Event::new(&cuda.device, false)? });
    }
    let first_elem = first_row * dst.cols;
    let mut slots = std::mem::take(&mut cuda.slots);
    let next_chunk = AtomicUsize::new(0);
    let failed = Mutex::new(None);
    // Readers share the device and the stream handle, not the rest of `cuda`.
    let (device, stream) = (&cuda.device, SharedStream(&cuda.stream));
    let dst = Destination { ptr: dst.buf.ptr(), dtype: dst.dtype, src_dtype, first_elem };
    let read = |slots: &mut [Slot]| -> Result<()> {
        device.make_current()?;
        for turn in 0.. {
            let chunk = next_chunk.fetch_add(1, Ordering::Relaxed);
            let Some(bytes) = src.chunks(SLOT_BYTES).nth(chunk) else { break };
            let slot = &mut slots[turn % SLOTS_PER_READER];
            slot.fetched.wait(OP)?;
            slot.pinned.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
            let elems_before = chunk * SLOT_BYTES / src_dtype.size_bytes();
            // SAFETY: rows and bytes were checked above, so the chunk's elements lie inside `dst`; the slot is
            // not written again before `fetched`.
            let status = unsafe { dst.fetch(&slot.pinned, bytes.len(), elems_before, stream.get()) };
            match status {
                Status::Driver(status) => device.check(OP, status.result())?,
                Status::Launch(status) => device.check_status(OP, status)?,
            }
            slot.fetched.record(stream.get())?;
        }
        Ok(())
    };
    if num_readers == 1 {
        let result = read(&mut slots[..SLOTS_PER_READER]);
        cuda.slots = slots;
        return result;
    }
    thread::scope(|scope| {
        for slots in slots.chunks_mut(SLOTS_PER_READER).take(num_readers) {
            scope.spawn(|| {
                if let Err(error) = read(slots) {
                    *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
                }
            });
        }
    });
    cuda.slots = slots;
    failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
}

/// A stream that several readers enqueue to.
struct SharedStream<'a>(&'a super::device::Stream);

// SAFETY: driver calls that enqueue to a stream are thread-safe, and readers only enqueue.
unsafe impl Sync for SharedStream<'_> {}

impl SharedStream<'_> {
    fn get(&self) -> &super::device::Stream {
        self.0
    }
}

/// Which of the two worlds a status code belongs to.
enum Status {
    Driver(sys::CUresult),
    Launch(std::ffi::c_int),
}

/// Where the elements of a load go.
struct Destination {
    ptr: sys::CUdeviceptr,
    dtype: DType,
    src_dtype: DType,
    first_elem: usize,
}

impl Destination {
    /// Enqueues the transfer of `len` bytes of `pinned` to the elements from `elems_before` on.
    ///
    /// # Safety
    /// The elements must lie inside of the destination, and `pinned` must not be written before the transfer.
    unsafe fn fetch(
        &self,
        pinned: &PinnedBuf,
        len: usize,
        elems_before: usize,
        stream: &super::device::Stream,
    ) -> Status {
        let offset = (self.first_elem + elems_before) * self.dtype.size_bytes();
        let ptr = self.ptr + offset as sys::CUdeviceptr;
        if self.dtype == self.src_dtype {
            // SAFETY: the caller's promise.
            return Status::Driver(unsafe {
                sys::cuMemcpyHtoDAsync_v2(ptr, pinned.as_ptr(), len, stream.raw())
            });
        }
        let params = msgl_convert_params {
            out: ptr as *mut _,
            src: pinned.as_ptr(),
            num_elems: (len / self.src_dtype.size_bytes()) as u64,
            out_dtype: check::abi(self.dtype),
            src_dtype: check::abi(self.src_dtype),
        };
        // SAFETY: the caller's promise; pinned memory has the same address on the device.
        Status::Launch(unsafe { msgl_convert(&params, stream.abi()) })
    }
}

/// See [`Backend::fill_random`](crate::Backend::fill_random). Element `i` is made of word `i % 4` of Philox at
/// counter `i / 4` under the key `seed`.
pub(crate) fn fill_random(
    cuda: &Cuda,
    dst: &mut Tensor<DeviceBuf>,
    mean: f32,
    std: f32,
    seed: u64,
) -> Result<()> {
    const OP: &str = "fill_random";
    check::below(OP, "dst", dst.size_bytes(), dst.buf.size_bytes() + 1)?;
    let params = msgl_fill_random_params {
        out: dst.buf.as_ptr(),
        num_elems: (dst.rows * dst.cols) as u64,
        seed,
        mean,
        std,
        dtype: check::abi(dst.dtype),
    };
    // SAFETY: the buffer holds `rows * cols` elements of `dtype`.
    unsafe { cuda.launch(OP, &params, msgl_fill_random) }
}
