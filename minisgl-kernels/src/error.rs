use crate::DType;

/// What an op, an allocation or a device can fail with.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// An argument's shape does not fit the others.
    #[error("{op}: {what} is {found}, expected {expected}")]
    Shape {
        /// The op that was called.
        op: &'static str,
        /// The argument and the quantity, as in `out.cols`.
        what: &'static str,
        /// What the other arguments ask for.
        expected: usize,
        /// What it is.
        found: usize,
    },
    /// An argument's dtype does not fit the others.
    #[error("{op}: {what} has dtype {found}, expected {expected}")]
    DType {
        /// The op that was called.
        op: &'static str,
        /// The argument.
        what: &'static str,
        /// What the other arguments ask for.
        expected: DType,
        /// What it is.
        found: DType,
    },
    /// The op exists but not for these arguments on this backend.
    #[error("{op} does not support {what}: {supported}")]
    Unsupported {
        /// The op that was called.
        op: &'static str,
        /// The argument and its value.
        what: String,
        /// What it does support.
        supported: String,
    },
    /// An index in the step's inputs points outside of what it indexes.
    #[error("{op}: {what} is {found}, must be below {limit}")]
    Index {
        /// The op that was called.
        op: &'static str,
        /// The index.
        what: &'static str,
        /// Its value.
        found: usize,
        /// The number of things that it indexes.
        limit: usize,
    },
    /// The device has too little memory left.
    #[error(
        "out of memory on {device}: {what} needs {wanted_bytes} bytes, {free_bytes} of {total_bytes} are free; \
         lower memory_ratio (or num_page_override where it is set), max_running_req, max_extend_tokens or \
         max_seq_len_override"
    )]
    OutOfMemory {
        /// The device.
        device: String,
        /// What the memory was for.
        what: &'static str,
        /// Bytes asked for.
        wanted_bytes: usize,
        /// Bytes free at that moment.
        free_bytes: usize,
        /// Bytes that the device has.
        total_bytes: usize,
    },
    /// There is no such device, or its driver cannot be used.
    #[error("no usable device '{device}': {why}")]
    NoDevice {
        /// What was asked for.
        device: String,
        /// Why it cannot be had, and what to do.
        why: String,
    },
    /// The device reported an error; nothing more can be computed on it by this engine.
    #[error("{op} failed on {device}: {message}")]
    Device {
        /// The op in which the error surfaced.
        op: &'static str,
        /// The device.
        device: String,
        /// The driver's name and text of the error.
        message: String,
    },
}

/// Result of anything in this crate.
pub type Result<T, E = KernelError> = std::result::Result<T, E>;
