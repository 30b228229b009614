//! The device, its primary context and its streams: everything else of this backend goes through here.

use std::cell::Cell;
use std::ffi::{CStr, c_int};
use std::sync::Arc;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute};

use super::bindings::{MSGL_ERROR_UNSUPPORTED, msgl_status_name, msgl_status_text, msgl_stream};
use crate::{KernelError, Memory, Result};

/// The static runtime in this program is CUDA 13.0's: an older driver cannot run it.
const MIN_DRIVER: i32 = 13000;
/// Oldest chip that the kernels are compiled for.
const MIN_COMPUTE_CAPABILITY: (i32, i32) = (8, 0);

/// One GPU with its primary context retained. Shared by every buffer, event and stream on it.
///
/// The context is never released: the runtime and cuBLASLt keep modules and handles in it for the life of the process,
/// and a device that is opened again after the last one was dropped would find them in a context that is gone.
pub(crate) struct Device {
    /// Its number, as the driver counts.
    pub(crate) ordinal: usize,
    /// As in `cuda:0`.
    label: String,
    name: String,
    cu_ctx: sys::CUcontext,
    /// Streaming multiprocessors.
    pub(crate) num_sms: u32,
    /// Bytes of the L2 cache.
    pub(crate) l2_bytes: usize,
    /// Compute capability as `10 * major + minor`: 80, 90.
    pub(crate) sm: u32,
}

// SAFETY: the only field that is not plain data is the context handle, and driver calls with a context handle
// are thread-safe.
unsafe impl Send for Device {}
// SAFETY: as above; nothing is mutated through a shared reference.
unsafe impl Sync for Device {}

impl Device {
    /// Retains the primary context of GPU number `ordinal` and makes it current on this thread.
    ///
    /// # Errors
    /// [`KernelError::NoDevice`] where there is no driver, no such GPU, or one too old.
    pub(crate) fn open(ordinal: usize) -> Result<Arc<Self>> {
        let label = format!("cuda:{ordinal}");
        let no_device = |why: String| KernelError::NoDevice { device: label.clone(), why };
        let driver = |what: &str, e: DriverError| no_device(format!("{what} failed: {}", describe(e)));
        let count = num_devices().map_err(|why| no_device(why.to_string()))?;
        if ordinal >= count {
            return Err(no_device(format!("this machine has {count} CUDA devices, numbered from 0")));
        }
        let cu_device = result::device::get(ordinal as c_int).map_err(|e| driver("cuDeviceGet", e))?;
        // SAFETY: the driver is loaded and `cu_device` came from it.
        let attribute = |a| unsafe { result::device::get_attribute(cu_device, a) };
        let read = |a| attribute(a).map_err(|e| driver("cuDeviceGetAttribute", e));
        let name = result::device::get_name(cu_device).map_err(|e| driver("cuDeviceGetName", e))?;
        let capability = (
            read(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            read(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        if capability < MIN_COMPUTE_CAPABILITY {
            let (major, minor) = capability;
            return Err(no_device(format!(
                "{name} has compute capability {major}.{minor}, the kernels need 8.0 (Ampere) or later"
            )));
        }
        let num_sms = read(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32;
        let l2_bytes = read(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?.max(0) as usize;
        // SAFETY: `cu_device` is valid.
        let cu_ctx = unsafe { result::primary_ctx::retain(cu_device) }
            .map_err(|e| driver("cuDevicePrimaryCtxRetain", e))?;
        let sm = (10 * capability.0 + capability.1) as u32;
        let device = Arc::new(Self { ordinal, label, name, cu_ctx, num_sms, l2_bytes, sm });
        device.make_current()?;
        Ok(device)
    }

    /// As in `cuda:0 (NVIDIA H100 80GB HBM3)`.
    pub(crate) fn name(&self) -> String {
        format!("{} ({})", self.label, self.name)
    }

    /// What a measurement of kernels holds for: the GPU, the driver, cuBLASLt and our own device code.
    pub(crate) fn kernels_key(&self) -> Result<String> {
        let mut driver = 0;
        // SAFETY: the driver is initialised and `driver` outlives the call.
        let status = unsafe { sys::cuDriverGetVersion(&mut driver) };
        self.check("cuDriverGetVersion", status.result())?;
        // SAFETY: a pure function of the library, which is loaded before a device is opened.
        let library = unsafe { cudarc::cublaslt::sys::cublasLtGetVersion() };
        let kernels = env!("MINISGL_KERNELS_HASH");
        Ok(format!("{}, driver {driver}, cuBLASLt {library}, kernels {kernels}", self.name))
    }

    /// Makes the context current on the calling thread.
    pub(crate) fn make_current(&self) -> Result<()> {
        // SAFETY: the context was retained in `open` and is never released.
        self.check("cuCtxSetCurrent", unsafe { result::ctx::set_current(self.cu_ctx) })
    }

    /// Device memory now. The context must be current.
    pub(crate) fn memory(&self) -> Result<Memory> {
        let (free_bytes, total_bytes) = self.check("cuMemGetInfo", result::mem_get_info())?;
        Ok(Memory { total_bytes, free_bytes })
    }

    /// Turns a driver error into a typed one.
    pub(crate) fn check<T>(&self, op: &'static str, result: Result<T, DriverError>) -> Result<T> {
        result.map_err(|e| match e.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => self.error(op, self.describe_shortage(e)),
            _ => self.error(op, describe(e)),
        })
    }

    /// For a call that does not say how many bytes it wanted.
    fn describe_shortage(&self, e: DriverError) -> String {
        let free = result::mem_get_info().map_or_else(
            |_| String::new(),
            |(free, total)| format!("; {} of {} MiB are free", free >> 20, total >> 20),
        );
        format!("{}{free}; lower memory_ratio, max_running_req or max_extend_tokens", describe(e))
    }

    /// Turns the status of a launcher into a typed error.
    pub(crate) fn check_status(&self, op: &'static str, status: c_int) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: both functions return static strings for any argument.
        let (name, text) =
            unsafe { (CStr::from_ptr(msgl_status_name(status)), CStr::from_ptr(msgl_status_text(status))) };
        if status == MSGL_ERROR_UNSUPPORTED {
            return Err(KernelError::Unsupported {
                op,
                what: "these sizes or this dtype".into(),
                supported: text.to_string_lossy().into_owned(),
            });
        }
        Err(self.error(op, format!("{}: {}", name.to_string_lossy(), text.to_string_lossy())))
    }

    /// The typed error for `message`.
    pub(crate) fn error(&self, op: &'static str, message: String) -> KernelError {
        KernelError::Device { op, device: self.name(), message }
    }
}

/// How many GPUs the driver shows, or why it shows none, for people.
pub(crate) fn num_devices() -> Result<usize, String> {
    // SAFETY: loading libcuda runs its constructors, which is what any CUDA program does.
    if !unsafe { sys::is_culib_present() } {
        return Err(
            "there is no NVIDIA driver on this machine (libcuda.so.1 cannot be loaded); install driver \
                    580 or later, or use the device 'cpu'"
                .into(),
        );
    }
    result::init().map_err(|e| match e.0 {
        sys::CUresult::CUDA_ERROR_NO_DEVICE => {
            "the NVIDIA driver finds no GPU; use the device 'cpu', or check CUDA_VISIBLE_DEVICES".into()
        }
        _ => format!("the NVIDIA driver does not start: {}", describe(e)),
    })?;
    let mut version = 0;
    // SAFETY: the driver is initialised and `version` outlives the call.
    let status = unsafe { sys::cuDriverGetVersion(&mut version) };
    status.result().map_err(|e| format!("cuDriverGetVersion failed: {}", describe(e)))?;
    check_driver(version)?;
    let count =
        result::device::get_count().map_err(|e| format!("cuDeviceGetCount failed: {}", describe(e)))?;
    Ok(count.max(0) as usize)
}

/// Fails for a driver that runs no CUDA of this program's: `version` as `cuDriverGetVersion` counts, 13000 for 13.0.
fn check_driver(version: i32) -> Result<(), String> {
    if version >= MIN_DRIVER {
        return Ok(());
    }
    Err(format!(
        "the NVIDIA driver is too old: it runs CUDA {}.{}, this program needs 13.0 (driver 580 or later); install a \
         newer one, or use the device 'cpu'",
        version / 1000,
        version % 1000 / 10
    ))
}

/// Name and text of a driver error.
pub(crate) fn describe(error: DriverError) -> String {
    let text = |s: Result<&CStr, DriverError>| {
        s.map_or_else(|_| "unknown".into(), |s| s.to_string_lossy().into_owned())
    };
    format!("{}: {}", text(error.error_name()), text(error.error_string()))
}

/// A stream that does not wait for the legacy default stream.
pub(crate) struct Stream {
    raw: sys::CUstream,
    device: Arc<Device>,
}

// SAFETY: a stream handle may be used from any thread; it is destroyed once, in drop.
unsafe impl Send for Stream {}

impl Stream {
    /// A new stream. The context must be current.
    pub(crate) fn new(device: &Arc<Device>) -> Result<Self> {
        let kind = result::stream::StreamKind::NonBlocking;
        let raw = device.check("cuStreamCreate", result::stream::create(kind))?;
        Ok(Self { raw, device: device.clone() })
    }

    pub(crate) fn raw(&self) -> sys::CUstream {
        self.raw
    }

    /// The handle as the launchers take it.
    pub(crate) fn abi(&self) -> msgl_stream {
        self.raw.cast()
    }

    /// Waits for everything enqueued.
    pub(crate) fn synchronize(&self, op: &'static str) -> Result<()> {
        // SAFETY: the stream lives until drop.
        self.device.check(op, unsafe { result::stream::synchronize(self.raw) })
    }

    /// Lets what is enqueued from now on wait for `event`.
    pub(crate) fn wait(&self, event: &Event) -> Result<()> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: stream and event live until their drops.
        self.device
            .check("cuStreamWaitEvent", unsafe { result::stream::wait_event(self.raw, event.raw, flags) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.device.make_current().is_ok() {
            // SAFETY: created in `new`, destroyed here only. After a sticky error it fails harmlessly.
            let _ = unsafe { result::stream::destroy(self.raw) };
        }
    }
}

/// A point in a stream.
pub(crate) struct Event {
    raw: sys::CUevent,
    device: Arc<Device>,
}

// SAFETY: an event handle may be used from any thread; it is destroyed once, in drop.
unsafe impl Send for Event {}

impl Event {
    /// An event that is complete until it is recorded. `timed` ones can measure.
    pub(crate) fn new(device: &Arc<Device>, timed: bool) -> Result<Self> {
        let flags = if timed {
            sys::CUevent_flags::CU_EVENT_DEFAULT
        } else {
            sys::CUevent_flags::CU_EVENT_DISABLE_TIMING
        };
        let raw = device.check("cuEventCreate", result::event::create(flags))?;
        Ok(Self { raw, device: device.clone() })
    }

    /// Marks the present end of `stream`.
    pub(crate) fn record(&self, stream: &Stream) -> Result<()> {
        // SAFETY: stream and event live until their drops.
        self.device.check("cuEventRecord", unsafe { result::event::record(self.raw, stream.raw) })
    }

    /// Waits until the point is reached, by polling: an interrupt would cost more than most steps have to spare.
    pub(crate) fn wait(&self, op: &'static str) -> Result<()> {
        for polls in 0u32.. {
            // SAFETY: the event lives until drop.
            match unsafe { result::event::query(self.raw) } {
                Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_READY)) => {}
                done => return self.device.check(op, done),
            }
            // A step takes 100 us to 100 ms; after the first few microseconds let others run between polls.
            if polls < 64 { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        Ok(())
    }

    /// Milliseconds from `start` to this point; both must be timed and complete.
    pub(crate) fn elapsed_ms(&self, start: &Event) -> Result<f32> {
        // SAFETY: both events live until their drops.
        self.device.check("cuEventElapsedTime", unsafe { result::event::elapsed(start.raw, self.raw) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.device.make_current().is_ok() {
            // SAFETY: created in `new`, destroyed here only. After a sticky error it fails harmlessly.
            let _ = unsafe { result::event::destroy(self.raw) };
        }
    }
}

/// Remembers on which thread the context was made current, so that an op asks the driver only after a move.
pub(crate) struct Binding {
    thread: Cell<Option<std::thread::ThreadId>>,
}

impl Binding {
    pub(crate) fn new() -> Self {
        Self { thread: Cell::new(None) }
    }

    /// Makes the context of `device` current on this thread unless it was made so before.
    pub(crate) fn ensure(&self, device: &Device) -> Result<()> {
        let current = std::thread::current().id();
        if self.thread.get() != Some(current) {
            device.make_current()?;
            self.thread.set(Some(current));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_is_too_old() {
        for (version, name) in [(12090, "12.9"), (12080, "12.8"), (11040, "11.4"), (0, "0.0")] {
            let error = check_driver(version).expect_err(name);
            for part in [name, "needs 13.0", "driver 580", "'cpu'"] {
                assert!(error.contains(part), "'{part}' is not in: {error}");
            }
        }
        for version in [13000, 13010, 14000] {
            assert_eq!(check_driver(version), Ok(()));
        }
    }
}
