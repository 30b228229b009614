use std::fmt;
use std::str::FromStr;

/// A family of attention kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AttnKernel {
    /// The fastest measured for the device, dtype and sizes.
    #[default]
    Auto,
    /// FlashAttention-style tiling over packed queries.
    Fa,
    /// FlashInfer-style split-KV over a work list.
    Fi,
    /// Whole pages of 16, 32 or 64 tokens.
    Trtllm,
}

impl fmt::Display for AttnKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AttnKernel::Auto => "auto",
            AttnKernel::Fa => "fa",
            AttnKernel::Fi => "fi",
            AttnKernel::Trtllm => "trtllm",
        })
    }
}

impl FromStr for AttnKernel {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "auto" => Ok(AttnKernel::Auto),
            "fa" => Ok(AttnKernel::Fa),
            "fi" => Ok(AttnKernel::Fi),
            "trtllm" => Ok(AttnKernel::Trtllm),
            _ => Err(format!("unknown attention backend '{name}': expected auto, fa, fi or trtllm")),
        }
    }
}
