//! Numbers in the backend's plain bytes, and the checks of shapes.

use half::{bf16, f16};
use minisgl_kernels::{DType, KernelError, Result, Tensor};

use crate::ops::support::encode;

pub(super) fn get(tensor: &Tensor<Vec<u8>>, rows: usize) -> Vec<f64> {
    let bytes = &tensor.buf[..rows * tensor.cols * tensor.dtype.size_bytes()];
    decode(tensor.dtype, bytes)
}

pub(super) fn decode(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    let element = |b: &[u8]| match dtype {
        DType::BF16 => bf16::from_le_bytes([b[0], b[1]]).to_f64(),
        DType::F16 => f16::from_le_bytes([b[0], b[1]]).to_f64(),
        DType::F32 => f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
    };
    bytes.chunks_exact(dtype.size_bytes()).map(element).collect()
}

pub(super) fn put(tensor: &mut Tensor<Vec<u8>>, first_row: usize, values: &[f64]) {
    let first = first_row * tensor.cols * tensor.dtype.size_bytes();
    let bytes = encode(tensor.dtype, values);
    tensor.buf[first..first + bytes.len()].copy_from_slice(&bytes);
}

pub(super) fn words(buf: &[u8]) -> Vec<u32> {
    buf.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

pub(super) fn put_word(buf: &mut [u8], index: usize, word: u32) {
    buf[index * 4..index * 4 + 4].copy_from_slice(&word.to_le_bytes());
}

pub(super) fn count(buf: &[u8], index: usize) -> u16 {
    u16::from_le_bytes([buf[index * 2], buf[index * 2 + 1]])
}

pub(super) fn put_count(buf: &mut [u8], index: usize, count: u16) {
    buf[index * 2..index * 2 + 2].copy_from_slice(&count.to_le_bytes());
}

pub(super) fn fits(op: &'static str, what: &'static str, expected: usize, found: usize) -> Result<()> {
    if expected == found { Ok(()) } else { Err(KernelError::Shape { op, what, expected, found }) }
}

pub(super) fn room(op: &'static str, what: &'static str, needed: usize, found: usize) -> Result<()> {
    if needed <= found { Ok(()) } else { Err(KernelError::Shape { op, what, expected: needed, found }) }
}

pub(super) fn typed(op: &'static str, what: &'static str, expected: DType, found: DType) -> Result<()> {
    if expected == found { Ok(()) } else { Err(KernelError::DType { op, what, expected, found }) }
}
