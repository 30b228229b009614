use half::{bf16, f16};
use minisgl_kernels::{Backend, DType, Tensor};

use super::Failure;
use crate::models::precision;

/// Bytes behind every buffer that no op may touch.
const GUARD_BYTES: usize = 192;

/// A NaN with a payload, so that one made by arithmetic is told from one left alone.
fn poison(dtype: DType) -> Vec<u8> {
    match dtype {
        DType::BF16 => 0x7fd5_u16.to_le_bytes().to_vec(),
        DType::F16 => 0x7ed5_u16.to_le_bytes().to_vec(),
        DType::F32 => 0x7fd5_5aa5_u32.to_le_bytes().to_vec(),
    }
}

/// Little-endian bytes of `values`, rounded to `dtype`; a NaN becomes the poison.
pub(crate) fn encode(dtype: DType, values: &[f64]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(values.len() * dtype.size_bytes());
    for &value in values {
        let value = precision(dtype).store(value);
        match dtype {
            _ if value.is_nan() => bytes.extend(poison(dtype)),
            DType::BF16 => bytes.extend(bf16::from_f64(value).to_le_bytes()),
            DType::F16 => bytes.extend(f16::from_f64(value).to_le_bytes()),
            DType::F32 => bytes.extend((value as f32).to_le_bytes()),
        }
    }
    bytes
}

fn decode(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    let pairs = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match dtype {
        DType::BF16 => pairs().map(|bits| bf16::from_bits(bits).to_f64()).collect(),
        DType::F16 => pairs().map(|bits| f16::from_bits(bits).to_f64()).collect(),
        DType::F32 => {
            bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect()
        }
    }
}

/// A tensor with a guard band behind it, and what was last seen in both.
#[derive(Debug)]
pub(crate) struct Guarded<Buf> {
    /// What ops take.
    pub(crate) tensor: Tensor<Buf>,
    bytes: Vec<u8>,
}

impl<Buf> Guarded<Buf> {
    /// A tensor of `rows` rows that begin with `values`; the rest is poison.
    pub(crate) fn new<B: Backend<Buf = Buf>>(
        backend: &mut B,
        dtype: DType,
        rows: usize,
        cols: usize,
        values: &[f64],
    ) -> Result<Self, Failure> {
        let mut bytes = encode(dtype, values);
        let size_bytes = rows * cols * dtype.size_bytes() + GUARD_BYTES;
        assert!(bytes.len() + GUARD_BYTES <= size_bytes, "{} values in {rows} x {cols}", values.len());
        while bytes.len() < size_bytes {
            bytes.extend(poison(dtype));
        }
        let mut buf = backend.alloc("test tensor", size_bytes)?;
        backend.write(&mut buf, 0, &bytes)?;
        Ok(Self { tensor: Tensor { buf, dtype, rows, cols }, bytes })
    }

    /// A tensor of poison alone: for outputs.
    pub(crate) fn poisoned<B: Backend<Buf = Buf>>(
        backend: &mut B,
        dtype: DType,
        rows: usize,
        cols: usize,
    ) -> Result<Self, Failure> {
        Self::new(backend, dtype, rows, cols, &[])
    }

    /// Parts the tensor from what was last seen in it, for ops that want it inside of something else.
    pub(crate) fn split(self) -> (Tensor<Buf>, Vec<u8>) {
        (self.tensor, self.bytes)
    }

    /// Undoes [`split`](Self::split).
    pub(crate) fn join(tensor: Tensor<Buf>, bytes: Vec<u8>) -> Self {
        Self { tensor, bytes }
    }

    /// The elements that were written, as the dtype holds them.
    pub(crate) fn written(&self) -> Vec<f64> {
        decode(self.tensor.dtype, &self.bytes[..self.tensor.size_bytes()])
    }

    /// The first `rows` rows, after checking that no byte behind them has changed.
    pub(crate) fn read_rows<B: Backend<Buf = Buf>>(
        &mut self,
        backend: &mut B,
        what: &str,
        rows: usize,
    ) -> Result<Vec<f64>, Failure> {
        self.read_marked(backend, what, |row| row >= rows)?;
        let row_bytes = self.tensor.cols * self.tensor.dtype.size_bytes();
        Ok(decode(self.tensor.dtype, &self.bytes[..rows * row_bytes]))
    }

    /// Every row, after checking that no byte of the guard band nor of a row for which `unchanged` holds has
    /// changed.
    pub(crate) fn read_marked<B: Backend<Buf = Buf>>(
        &mut self,
        backend: &mut B,
        what: &str,
        unchanged: impl Fn(usize) -> bool,
    ) -> Result<Vec<f64>, Failure> {
        let mut found = vec![0; self.bytes.len()];
        backend.read(&self.tensor.buf, 0, &mut found)?;
        let row_bytes = self.tensor.cols * self.tensor.dtype.size_bytes();
        for row in 0..self.tensor.rows {
            let range = row * row_bytes..(row + 1) * row_bytes;
            if unchanged(row) && found[range.clone()] != self.bytes[range] {
                return Err(Failure::wrong(format!(
                    "{what}: row {row}, which is not the op's to write, changed"
                )));
            }
        }
        let end = self.tensor.size_bytes();
        if found[end..] != self.bytes[end..] {
            return Err(Failure::wrong(format!("{what}: the guard band was written")));
        }
        self.bytes = found;
        Ok(decode(self.tensor.dtype, &self.bytes[..end]))
    }

    /// Checks that no byte has changed: for inputs.
    pub(crate) fn unchanged<B: Backend<Buf = Buf>>(
        &mut self,
        backend: &mut B,
        what: &str,
    ) -> Result<(), Failure> {
        self.read_marked(backend, what, |_| true).map(|_| ())
    }

    /// Replaces the first elements.
    pub(crate) fn rewrite<B: Backend<Buf = Buf>>(
        &mut self,
        backend: &mut B,
        values: &[f64],
    ) -> Result<(), Failure> {
        let bytes = encode(self.tensor.dtype, values);
        backend.write(&mut self.tensor.buf, 0, &bytes)?;
        self.bytes[..bytes.len()].copy_from_slice(&bytes);
        Ok(())
    }
}

/// Reads and writes of buffers of whole numbers.
pub(crate) struct Words;

impl Words {
    /// `n` u32 from the start of `buf`.
    pub(crate) fn read_u32<B: Backend>(backend: &mut B, buf: &B::Buf, n: usize) -> Result<Vec<u32>, Failure> {
        let mut bytes = vec![0; n * 4];
        backend.read(buf, 0, &mut bytes)?;
        Ok(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    /// `n` u16 from the start of `buf`.
    pub(crate) fn read_u16<B: Backend>(backend: &mut B, buf: &B::Buf, n: usize) -> Result<Vec<u16>, Failure> {
        let mut bytes = vec![0; n * 2];
        backend.read(buf, 0, &mut bytes)?;
        Ok(bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect())
    }

    /// Writes to the start of `buf`.
    pub(crate) fn write_u32<B: Backend>(
        backend: &mut B,
        buf: &mut B::Buf,
        words: &[u32],
    ) -> Result<(), Failure> {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        Ok(backend.write(buf, 0, &bytes)?)
    }

    /// Writes to the start of `buf`.
    pub(crate) fn write_u16<B: Backend>(
        backend: &mut B,
        buf: &mut B::Buf,
        words: &[u16],
    ) -> Result<(), Failure> {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        Ok(backend.write(buf, 0, &bytes)?)
    }
}
