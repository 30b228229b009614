//! cuBLASLt's handle.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;

use crate::cuda::device::Device;

/// The library's handle for a device: one for the life of the process, shared by all that run on it.
///
/// Destroying a handle waits for the whole context. That spoils graphs that other threads are recording, and where it
/// meets streams that come and go there, the driver reads memory that is gone (seen with driver 580.159).
#[derive(Clone, Copy)]
pub(crate) struct Handle(pub(crate) sys::cublasLtHandle_t);

// SAFETY: the library's calls with one handle are thread-safe, and it is never destroyed.
unsafe impl Send for Handle {}

static HANDLES: Mutex<BTreeMap<usize, Handle>> = Mutex::new(BTreeMap::new());

impl Handle {
    /// The library must be loadable, and the device's context current.
    pub(crate) fn of(device: &Device) -> Result<Self, CublasError> {
        let mut handles = HANDLES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&handle) = handles.get(&device.ordinal) {
            return Ok(handle);
        }
        let handle = Self(result::create_handle()?);
        handles.insert(device.ordinal, handle);
        Ok(handle)
    }
}
