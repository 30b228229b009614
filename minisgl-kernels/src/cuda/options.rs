//! What a caller chooses about the CUDA backend.

pub use crate::AttnKernel;

/// How to open a CUDA device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CudaOptions {
    /// Which GPU, from 0, in the order of `CUDA_VISIBLE_DEVICES`.
    pub ordinal: usize,
    /// Attention kernels for sequences with many queries.
    pub prefill: AttnKernel,
    /// Attention kernels for sequences with one query or few.
    pub decode: AttnKernel,
    /// Choose among cuBLASLt's algorithms by measurement for the shapes of decoding. Faster; two runs of the
    /// program may then choose differently, and differ in the last bits.
    pub tune_gemm: bool,
}

impl Default for CudaOptions {
    fn default() -> Self {
        Self { ordinal: 0, prefill: AttnKernel::Auto, decode: AttnKernel::Auto, tune_gemm: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_names_round_trip() {
        for kernel in [AttnKernel::Auto, AttnKernel::Fa, AttnKernel::Fi, AttnKernel::Trtllm] {
            assert_eq!(kernel.to_string().parse(), Ok(kernel));
        }
        assert!("FA2".parse::<AttnKernel>().unwrap_err().contains("'FA2'"));
    }
}
