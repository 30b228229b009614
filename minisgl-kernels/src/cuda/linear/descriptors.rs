//! cuBLASLt's descriptors, each destroyed on drop.

use std::mem::MaybeUninit;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::{self, cublasLtMatmulDescAttributes_t as DescAttribute};

use super::handle::Handle;
use crate::DType;

/// `cublasOperation_t::CUBLAS_OP_T`, which the bindings of cuBLASLt alone do not have.
const CUBLAS_OP_T: i32 = 1;

/// The dtype as cuBLASLt takes it.
pub(crate) fn data_type(dtype: DType) -> sys::cudaDataType {
    match dtype {
        DType::BF16 => sys::cudaDataType_t::CUDA_R_16BF,
        DType::F16 => sys::cudaDataType_t::CUDA_R_16F,
        DType::F32 => sys::cudaDataType_t::CUDA_R_32F,
    }
}

/// A column-major matrix, which is a row-major one transposed.
pub(crate) struct MatrixLayout(pub(crate) sys::cublasLtMatrixLayout_t);

// SAFETY: plain host memory of the library with one owner.
unsafe impl Send for MatrixLayout {}

impl MatrixLayout {
    pub(crate) fn new(dtype: DType, rows: usize, cols: usize, stride: usize) -> Result<Self, CublasError> {
        let stride = stride as i64;
        Ok(Self(result::create_matrix_layout(data_type(dtype), rows as u64, cols as u64, stride)?))
    }
}

impl Drop for MatrixLayout {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed here only.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// What is computed: `D = alpha * A^T * B + beta * C` with sums in f32.
pub(crate) struct MatmulDesc(pub(crate) sys::cublasLtMatmulDesc_t);

// SAFETY: plain host memory of the library with one owner.
unsafe impl Send for MatmulDesc {}

impl MatmulDesc {
    pub(crate) fn new() -> Result<Self, CublasError> {
        // Not one of the FAST types: f32 operands are multiplied as f32, not as tf32.
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let desc = Self(result::create_matmul_desc(compute, sys::cudaDataType_t::CUDA_R_32F)?);
        desc.set(DescAttribute::CUBLASLT_MATMUL_DESC_TRANSA, &CUBLAS_OP_T)?;
        Ok(desc)
    }

    fn set<T>(&self, attribute: DescAttribute, value: &T) -> Result<(), CublasError> {
        let value = std::ptr::from_ref(value).cast();
        // SAFETY: the descriptor is alive; each attribute above is set from the type that it is documented with.
        unsafe { result::set_matmul_desc_attribute(self.0, attribute, value, size_of::<T>()) }
    }
}

impl Drop for MatmulDesc {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed here only.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// Asks for algorithms that need at most `workspace_bytes`, likeliest first.
pub(crate) fn candidates(
    handle: Handle,
    desc: &MatmulDesc,
    [a, b, d]: [&MatrixLayout; 3],
    workspace_bytes: usize,
    limit: usize,
) -> Result<Vec<sys::cublasLtMatmulHeuristicResult_t>, CublasError> {
    struct Preference(sys::cublasLtMatmulPreference_t);
    impl Drop for Preference {
        fn drop(&mut self) {
            // SAFETY: created below, destroyed here only.
            let _ = unsafe { result::destroy_matmul_pref(self.0) };
        }
    }
    let preference = Preference(result::create_matmul_pref()?);
    use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
    let max_workspace = Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
    let reductions = Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK;
    // Split-K parts may be added in f32 only: the other schemes round each part to the output's dtype.
    let allowed = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
    let mut found = vec![MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit(); limit];
    let mut count = 0;
    // SAFETY: every descriptor is alive; the workspace attribute is a size_t, the mask a uint32_t; `found` has
    // room for `limit` results, of which the library initialises `count`.
    unsafe {
        let value = std::ptr::from_ref(&workspace_bytes).cast();
        result::set_matmul_pref_attribute(preference.0, max_workspace, value, size_of::<usize>())?;
        let value = std::ptr::from_ref(&allowed).cast();
        result::set_matmul_pref_attribute(preference.0, reductions, value, size_of::<u32>())?;
        sys::cublasLtMatmulAlgoGetHeuristic(
            handle.0,
            desc.0,
            a.0,
            b.0,
            d.0,
            d.0,
            preference.0,
            limit as i32,
            found.as_mut_ptr().cast(),
            &mut count,
        )
        .result()?;
        found.truncate(count as usize);
        let results = found.into_iter().map(|r| r.assume_init());
        Ok(results.filter(|r| r.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS).collect())
    }
}
