use crate::DType;

/// A row-major matrix of floats in a backend's memory.
///
/// A vector is a matrix of one row. Activations are allocated once at their largest number of rows; ops take
/// the number of rows in use.
#[derive(Debug)]
pub struct Tensor<Buf> {
    /// The memory: at least `rows * cols` elements.
    pub buf: Buf,
    /// Element type.
    pub dtype: DType,
    /// Rows.
    pub rows: usize,
    /// Columns: elements between the starts of two rows.
    pub cols: usize,
}

impl<Buf> Tensor<Buf> {
    /// Bytes of `rows * cols` elements.
    pub const fn size_bytes(&self) -> usize {
        self.rows * self.cols * self.dtype.size_bytes()
    }
}
