//! Our own product of many tokens: csrc/gemm/.

use super::super::bindings::{msgl_activation, msgl_gemm, msgl_gemm_is_supported, msgl_gemm_params};
use super::super::{Cuda, check};
use super::{OP, Operands, Shape};
use crate::cuda::options::LinearKernel;
use crate::{Activation, Result};

/// Fewest tokens that it gets: steps with fewer are recorded ones, for which cuBLASLt's algorithms are measured.
const MIN_ROWS: usize = 512;
/// The same with gates, where cuBLASLt needs a pass of its own over them.
const MIN_GATED_ROWS: usize = 193;
/// Rows of the output that two multiprocessors compute together.
const TILE_ROWS: usize = 256;
/// Rows of the weight in a tile: `GemmWide` and `GemmNarrow` in csrc/gemm/shape.cuh.
const WIDE_TILE_COLS: usize = 256;
const NARROW_TILE_COLS: usize = 224;
/// Columns of `x` that the narrow tile needs at least.
const NARROW_MIN_K: usize = 833;
/// What a column of the narrow tile takes of a column of the wide one.
const NARROW_COST: f64 = 33.0 / 32.0;
/// What its own speed must be at least of cuBLASLt's, by the share of its tiles that are work: docs/kernels/gemm.md.
const MIN_SHARE: f64 = 0.93;
const MIN_GATED_SHARE: f64 = 0.9;
/// Columns of the product that cost as much as the separate pass over gates and ups.
const ACTIVATION_COST: f64 = 256.0;

/// A linear layer, perhaps with the gated activation of what it computes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gemm {
    params: msgl_gemm_params,
}

impl Gemm {
    /// The product, or none where the kernel does not compute it or something else is faster. With `gated`, the
    /// weight's rows are gates and then ups, and the output has one column for each pair.
    pub(super) fn choose(
        cuda: &Cuda,
        shape: Shape,
        operands: Operands,
        gated: Option<Activation>,
    ) -> Result<Option<Self>> {
        let tiles = Tiles::choose(shape, cuda.device.num_sms as usize);
        let is_wanted = match cuda.options.linear {
            LinearKernel::Auto => pays(shape, &tiles, gated.is_some()),
            LinearKernel::Gemm => true,
            LinearKernel::Cublas | LinearKernel::Own(_) => false,
        };
        if !is_wanted || shape.has_bias || shape.adds || shape.out_dtype != shape.dtype {
            return Ok(None);
        }
        let params = msgl_gemm_params {
            out: operands.out,
            x: operands.x,
            weight: operands.weight,
            rows: check::u32_of(OP, "rows", shape.rows)?,
            n: check::u32_of(OP, "weight.rows", shape.n)?,
            k: check::u32_of(OP, "weight.cols", shape.k)?,
            is_gated: u32::from(gated.is_some()),
            num_sms: cuda.device.num_sms,
            tile_cols: check::u32_of(OP, "tile columns", tiles.cols)?,
            activation: gated.map_or(msgl_activation::MSGL_SILU, check::activation),
            dtype: check::abi(shape.dtype),
        };
        // SAFETY: reads sizes and the dtype; what it asks the runtime is about the current device, which is this one.
        let is_supported = unsafe { msgl_gemm_is_supported(&params, cuda.device.sm) } != 0;
        Ok(is_supported.then_some(Self { params }))
    }

    /// Enqueues the kernel.
    ///
    /// # Safety
    /// The operands must have the sizes of the shape; with gates the output has `n / 2` columns.
    pub(super) unsafe fn enqueue(&self, cuda: &Cuda) -> Result<()> {
        // SAFETY: the caller's promise; `choose` has made sure that there is a kernel.
        unsafe { cuda.launch(OP, &self.params, msgl_gemm) }
    }
}

/// How the product falls into tiles, and these on the multiprocessors.
struct Tiles {
    /// Of the product, in a tile.
    cols: usize,
    /// Tiles that two multiprocessors compute one after the other.
    rounds: usize,
    /// What of the tiles in these rounds is work.
    share: f64,
}

impl Tiles {
    /// The width that takes less time.
    fn choose(shape: Shape, num_sms: usize) -> Self {
        let (wide, narrow) =
            (Self::of(shape, num_sms, WIDE_TILE_COLS), Self::of(shape, num_sms, NARROW_TILE_COLS));
        let is_narrow = shape.k >= NARROW_MIN_K && NARROW_COST * narrow.columns() < wide.columns();
        if is_narrow { narrow } else { wide }
    }

    fn of(shape: Shape, num_sms: usize, cols: usize) -> Self {
        let at_once = (num_sms / 2).max(1);
        let rounds = (shape.rows.div_ceil(TILE_ROWS) * shape.n.div_ceil(cols)).div_ceil(at_once);
        let share = (shape.rows * shape.n) as f64 / (TILE_ROWS * rounds * cols * at_once) as f64;
        Self { cols, rounds, share }
    }

    /// What two multiprocessors compute, one tile after the other.
    fn columns(&self) -> f64 {
        (self.rounds * self.cols) as f64
    }
}

/// Whether it is faster than cuBLASLt, with gates than cuBLASLt and the pass after it. Its tiles are large, so that it
/// loses where the last round of them leaves multiprocessors idle, or where tiles are not full.
fn pays(shape: Shape, tiles: &Tiles, is_gated: bool) -> bool {
    if is_gated {
        let gain = 1.0 + ACTIVATION_COST / shape.k as f64;
        shape.rows >= MIN_GATED_ROWS && tiles.share * gain >= MIN_GATED_SHARE
    } else {
        // A single round has nothing to store its tiles under but the start of the next kernel.
        shape.rows >= MIN_ROWS && tiles.share >= MIN_SHARE && tiles.rounds > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    fn shape(rows: usize, n: usize, k: usize) -> Shape {
        let (dtype, out_dtype) = (DType::BF16, DType::BF16);
        Shape { rows, n, k, dtype, out_dtype, has_bias: false, adds: false }
    }

    fn pays_on_h200(rows: usize, n: usize, k: usize, is_gated: bool) -> bool {
        let shape = shape(rows, n, k);
        pays(shape, &Tiles::choose(shape, 132), is_gated)
    }

    #[test]
    fn the_narrow_tile_is_taken_where_its_rounds_are_shorter() {
        let cols = |rows, n, k| Tiles::choose(shape(rows, n, k), 132).cols;
        // Two rounds of either; one of wide tiles and two of narrow ones.
        assert_eq!(cols(256, 28672, 4096), NARROW_TILE_COLS);
        assert_eq!(cols(256, 16384, 2048), WIDE_TILE_COLS);
        assert_eq!(cols(256, 28672, NARROW_MIN_K), NARROW_TILE_COLS);
        assert_eq!(cols(256, 28672, NARROW_MIN_K - 1), WIDE_TILE_COLS);
    }

    #[test]
    fn it_is_chosen_where_it_was_measured_to_be_faster() {
        let gated = |rows, n, k| pays_on_h200(rows, n, k, true);
        for rows in [512, 1024, 1536, 2048, 3000, 4096, 8192] {
            assert!(gated(rows, 6144, 1024), "{rows}");
        }
        for rows in [1024, 1536, 2048, 3000, 4096, 8192] {
            assert!(gated(rows, 16384, 2048) && gated(rows, 28672, 4096), "{rows}");
        }
        // Two rounds of narrow tiles, and one of wide ones.
        for rows in [224, 240, 256, 512] {
            assert!(gated(rows, 28672, 4096) && gated(rows, 16384, 2048), "{rows}");
        }
        for rows in [128, 192, 208, 300] {
            assert!(!gated(rows, 28672, 4096) && !gated(rows, 16384, 2048), "{rows}");
        }
        for rows in [256, 640, 1300] {
            assert!(!gated(rows, 6144, 1024), "{rows}");
        }
        assert!(!gated(640, 28672, 4096) && !gated(1300, 28672, 4096));
        let plain = |rows, n, k| pays_on_h200(rows, n, k, false);
        assert!(plain(4096, 4096, 1024) && plain(8192, 3072, 2048) && plain(8192, 6144, 4096));
        assert!(!plain(1024, 4096, 1024) && !plain(3000, 3072, 2048) && !plain(3000, 6144, 4096));
    }
}
