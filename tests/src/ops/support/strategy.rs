use minisgl_kernels::DType;
use proptest::prelude::*;
use proptest::sample::select;

/// Any dtype; a failing case shrinks to f32, where an error is easiest to see.
pub(crate) fn dtype() -> impl Strategy<Value = DType> {
    select(vec![DType::F32, DType::F16, DType::BF16])
}

/// One of `values`; a failing case shrinks to the first.
pub(crate) fn one_of(values: &[usize]) -> impl Strategy<Value = usize> + use<> {
    select(values.to_vec())
}
