//! What a caller chooses about the CUDA backend.

use super::bindings::MSGL_SKINNY_VARIANTS;
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
    /// Kernels for linear layers.
    pub linear: LinearKernel,
    /// Choose among the kernels for linear layers, and among cuBLASLt's algorithms, by measurement for the shapes of
    /// decoding. Faster. What was measured is kept in the user's cache folder (`$XDG_CACHE_HOME/mini-sgl`, or
    /// `~/.cache/mini-sgl`) for the GPU, the driver, the library and the kernels that it was measured with, so that
    /// later runs choose the same; where that is not possible two runs may choose differently, and differ in the
    /// last bits.
    pub tune_gemm: bool,
}

/// How many own kernels for linear layers there are, counting each way to cut a product up.
pub const OWN_LINEAR_KERNELS: u32 = MSGL_SKINNY_VARIANTS;

/// A family of kernels for linear layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinearKernel {
    /// The fastest measured for the device, dtype and sizes.
    #[default]
    Auto,
    /// cuBLASLt, with separate kernels for what comes before and after.
    Cublas,
    /// This one of our own kernels for few tokens, below [`OWN_LINEAR_KERNELS`], wherever it can run.
    Own(u32),
    /// Our own kernel for many tokens wherever it can run, and else cuBLASLt.
    Gemm,
}

impl Default for CudaOptions {
    fn default() -> Self {
        Self {
            ordinal: 0,
            prefill: AttnKernel::Auto,
            decode: AttnKernel::Auto,
            linear: LinearKernel::Auto,
            tune_gemm: true,
        }
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
