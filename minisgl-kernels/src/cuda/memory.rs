//! Device memory and pinned host memory, each freed on drop.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;

use cudarc::driver::result;
use cudarc::driver::sys::{CUdeviceptr, CUresult};

use super::device::{self, Device, Stream};
use crate::{KernelError, Result};

/// Memory of a GPU, freed on drop.
pub struct DeviceBuf {
    ptr: CUdeviceptr,
    size_bytes: usize,
    device: Arc<Device>,
}

impl std::fmt::Debug for DeviceBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DeviceBuf({} bytes at {:#x} of {})", self.size_bytes, self.ptr, self.device.name())
    }
}

impl DeviceBuf {
    /// Allocates `size_bytes` bytes, zeroed in the order of `stream`. The context must be current.
    pub(crate) fn zeroed(
        device: &Arc<Device>,
        stream: &Stream,
        what: &'static str,
        size_bytes: usize,
    ) -> Result<Self> {
        // The driver refuses 0 bytes; an empty tensor is nobody's error.
        let allocated = size_bytes.max(16);
        // SAFETY: the memory is zeroed below before anything can read it.
        let ptr = match unsafe { result::malloc_sync(allocated) } {
            Err(e) if e.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let memory = device.memory()?;
                return Err(KernelError::OutOfMemory {
                    device: device.name(),
                    what,
                    wanted_bytes: size_bytes,
                    free_bytes: memory.free_bytes,
                    total_bytes: memory.total_bytes,
                });
            }
            other => device.check("cuMemAlloc", other)?,
        };
        let buf = Self { ptr, size_bytes, device: device.clone() };
        // SAFETY: `ptr` was just allocated with `allocated` bytes.
        let cleared = unsafe { result::memset_d8_async(ptr, 0, allocated, stream.raw()) };
        device.check("cuMemsetD8Async", cleared)?;
        Ok(buf)
    }

    /// Bytes asked for.
    pub fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    /// Address of the first byte.
    pub(crate) fn ptr(&self) -> CUdeviceptr {
        self.ptr
    }

    /// The address as a launcher takes it.
    pub(crate) fn as_ptr<T>(&self) -> *mut T {
        self.ptr as *mut T
    }

    /// The address of the byte at `offset_bytes`, which the caller has checked to be inside.
    pub(crate) fn at<T>(&self, offset_bytes: usize) -> *mut T {
        debug_assert!(offset_bytes <= self.size_bytes);
        (self.ptr + offset_bytes as CUdeviceptr) as *mut T
    }
}

impl Drop for DeviceBuf {
    fn drop(&mut self) {
        if self.device.make_current().is_ok() {
            // SAFETY: allocated in `zeroed`, freed here only. The driver waits for work that uses the memory.
            // After a sticky error it fails harmlessly.
            let _ = unsafe { result::free_sync(self.ptr) };
        }
    }
}

/// Page-locked host memory that the device can read and write at its host address. Not write-combined, so
/// reading it back is as fast as reading any memory.
pub(crate) struct PinnedBuf {
    ptr: NonNull<u8>,
    size_bytes: usize,
    device: Arc<Device>,
}

// SAFETY: plain memory with one owner, freed once, in drop.
unsafe impl Send for PinnedBuf {}

impl PinnedBuf {
    /// Allocates `size_bytes` zeroed bytes. The context must be current.
    pub(crate) fn new(device: &Arc<Device>, size_bytes: usize) -> Result<Self> {
        let size_bytes = size_bytes.max(16);
        // SAFETY: the memory is zeroed below before anything can read it. Flags 0: cached, and mapped through
        // unified addressing.
        let ptr = unsafe { result::malloc_host(size_bytes, 0) }.map_err(|e| {
            let what = format!("{size_bytes} bytes of page-locked host memory: {}", device::describe(e));
            device.error("cuMemHostAlloc", what)
        })?;
        let ptr = NonNull::new(ptr.cast::<u8>())
            .ok_or_else(|| device.error("cuMemHostAlloc", "returned a null pointer".into()))?;
        // SAFETY: just allocated with `size_bytes` bytes.
        unsafe { ptr.as_ptr().write_bytes(0, size_bytes) };
        Ok(Self { ptr, size_bytes, device: device.clone() })
    }

    pub(crate) fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    /// The bytes, for the host to write. The caller has waited for what the device was told to do with them.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: `size_bytes` initialised bytes with one owner, which `&mut self` is; `PinnedBuf`'s users wait
        // for the event of the last device access before they come here.
        unsafe { slice::from_raw_parts_mut(self.ptr.as_ptr(), self.size_bytes) }
    }

    /// The bytes, for the host to read. The caller has waited for what the device was told to do with them.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: as in `bytes_mut`, shared.
        unsafe { slice::from_raw_parts(self.ptr.as_ptr(), self.size_bytes) }
    }

    /// The address, valid on the host and on the device.
    pub(crate) fn as_ptr<T>(&self) -> *mut T {
        self.ptr.as_ptr().cast()
    }
}

impl Drop for PinnedBuf {
    fn drop(&mut self) {
        if self.device.make_current().is_ok() {
            // SAFETY: allocated in `new`, freed here only.
            let _ = unsafe { result::free_host(self.ptr.as_ptr().cast::<c_void>()) };
        }
    }
}
