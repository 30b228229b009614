//! Checks of arguments, and the views that they make safe.

use super::buf::{Buf, Plain};
use super::simd::Element;
use crate::{DType, KernelError, Result, Tensor};

/// Names of an argument and of its parts in errors.
#[derive(Clone, Copy)]
pub(crate) struct Names {
    pub(crate) op: &'static str,
    pub(crate) arg: &'static str,
    pub(crate) rows: &'static str,
    pub(crate) cols: &'static str,
    pub(crate) bytes: &'static str,
}

/// The [`Names`] of an argument of an op.
macro_rules! names {
    ($op:expr, $arg:literal) => {
        $crate::cpu::check::Names {
            op: $op,
            arg: $arg,
            rows: concat!($arg, ".rows"),
            cols: concat!($arg, ".cols"),
            bytes: concat!($arg, ".buf bytes"),
        }
    };
}
pub(crate) use names;

/// `found == expected`, or a shape error.
pub(crate) fn equal(op: &'static str, what: &'static str, expected: usize, found: usize) -> Result<()> {
    if found == expected { Ok(()) } else { Err(KernelError::Shape { op, what, expected, found }) }
}

/// `found < limit`, or an index error.
pub(crate) fn below(op: &'static str, what: &'static str, limit: usize, found: usize) -> Result<()> {
    if found < limit { Ok(()) } else { Err(KernelError::Index { op, what, found, limit }) }
}

/// The tensor has dtype `expected`.
pub(crate) fn dtype(names: Names, expected: DType, tensor: &Tensor<Buf>) -> Result<()> {
    if tensor.dtype == expected {
        Ok(())
    } else {
        Err(KernelError::DType { op: names.op, what: names.arg, expected, found: tensor.dtype })
    }
}

/// The tensor has `cols` columns and at least `rows` rows, and its memory holds them.
fn shape<T: Plain>(names: Names, tensor: &Tensor<Buf>, rows: usize, cols: usize) -> Result<()> {
    equal(names.op, names.cols, cols, tensor.cols)?;
    if tensor.rows < rows {
        return Err(KernelError::Shape {
            op: names.op,
            what: names.rows,
            expected: rows,
            found: tensor.rows,
        });
    }
    let bytes = rows.saturating_mul(cols).saturating_mul(size_of::<T>());
    if tensor.buf.len() < bytes {
        let found = tensor.buf.len();
        return Err(KernelError::Shape { op: names.op, what: names.bytes, expected: bytes, found });
    }
    Ok(())
}

/// The first `rows` rows of a tensor of `cols` columns. `E` must be the element type of `tensor.dtype`.
pub(crate) fn rows<E: Element>(names: Names, tensor: &Tensor<Buf>, rows: usize, cols: usize) -> Result<&[E]> {
    debug_assert_eq!(size_of::<E>(), tensor.dtype.size_bytes());
    shape::<E>(names, tensor, rows, cols)?;
    Ok(&tensor.buf.as_slice()[..rows * cols])
}

/// As [`rows`], mutable.
pub(crate) fn rows_mut<E: Element>(
    names: Names,
    tensor: &mut Tensor<Buf>,
    rows: usize,
    cols: usize,
) -> Result<&mut [E]> {
    debug_assert_eq!(size_of::<E>(), tensor.dtype.size_bytes());
    shape::<E>(names, tensor, rows, cols)?;
    Ok(&mut tensor.buf.as_mut_slice()[..rows * cols])
}

/// The first `len` numbers of a buffer.
pub(crate) fn numbers<'a, T: Plain>(
    op: &'static str,
    what: &'static str,
    buf: &'a Buf,
    len: usize,
) -> Result<&'a [T]> {
    let slice = buf.as_slice();
    slice.get(..len).ok_or(KernelError::Shape { op, what, expected: len, found: slice.len() })
}

/// As [`numbers`], mutable.
pub(crate) fn numbers_mut<'a, T: Plain>(
    op: &'static str,
    what: &'static str,
    buf: &'a mut Buf,
    len: usize,
) -> Result<&'a mut [T]> {
    let slice = buf.as_mut_slice();
    let found = slice.len();
    slice.get_mut(..len).ok_or(KernelError::Shape { op, what, expected: len, found })
}

/// A slice that threads write to in disjoint parts.
#[derive(Clone, Copy)]
pub(crate) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    lifetime: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through `get`, whose caller promises that no element is reached twice at a time; that is
// what sharing a `&mut [T]` split in parts would mean, which is allowed for `T: Send`.
unsafe impl<T: Send> Send for Disjoint<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), lifetime: std::marker::PhantomData }
    }

    /// Elements `start..start + len`.
    ///
    /// # Panics
    /// If they are not all inside.
    ///
    /// # Safety
    /// While the result lives, no other reference to any of these elements is used.
    #[expect(clippy::mut_from_ref, reason = "the caller promises that the parts are disjoint")]
    #[inline(always)]
    pub(crate) unsafe fn get(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start, "part {start}+{len} of {}", self.len);
        // SAFETY: inside the slice by the assertion, alive by the lifetime, unaliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}
