use std::fmt;
use std::str::FromStr;

use half::{bf16, f16};

/// Element type of a tensor of floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// bfloat16: 8 bits of exponent, 7 of fraction.
    BF16,
    /// IEEE half precision: 5 bits of exponent, 10 of fraction.
    F16,
    /// IEEE single precision.
    F32,
}

impl DType {
    /// Every dtype, narrowest first.
    pub const ALL: [DType; 3] = [DType::BF16, DType::F16, DType::F32];

    /// Bytes of one element.
    pub const fn size_bytes(self) -> usize {
        match self {
            DType::BF16 | DType::F16 => 2,
            DType::F32 => 4,
        }
    }

    /// Distance from 1.0 to the next larger number: twice the largest relative rounding error.
    pub const fn epsilon(self) -> f64 {
        match self {
            DType::BF16 => 1.0 / 128.0,
            DType::F16 => 1.0 / 1024.0,
            DType::F32 => f32::EPSILON as f64,
        }
    }

    /// The values of little-endian `bytes`; a last partial element is left out.
    pub fn widen(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            DType::BF16 => {
                bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
            }
            DType::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            DType::F32 => {
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
        }
    }

    /// `values` rounded to nearest even, as little-endian bytes.
    pub fn narrow(self, values: &[f32]) -> Vec<u8> {
        match self {
            DType::BF16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
            DType::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
            DType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::BF16 => "bf16",
            DType::F16 => "f16",
            DType::F32 => "f32",
        })
    }
}

impl FromStr for DType {
    type Err = String;

    /// Accepts the short names and those of PyTorch and safetensors, in any case.
    fn from_str(name: &str) -> Result<Self, String> {
        match name.to_ascii_lowercase().trim_start_matches("torch.") {
            "bf16" | "bfloat16" => Ok(DType::BF16),
            "f16" | "float16" | "half" => Ok(DType::F16),
            "f32" | "float32" | "float" => Ok(DType::F32),
            _ => Err(format!("unknown dtype '{name}': expected bf16, f16 or f32")),
        }
    }
}
