//! The loops around the tile: which rows meet which weights when, so that each is in a near cache by then.

use std::ops::Range;

use super::dot::{Dot, F};
use super::pack::Layout;
use super::tile::{Weights, accumulate};
use crate::cpu::simd::{Element, LANES, Simd};

/// Bytes of K of one packed row that a tile runs through before the next tile starts: 6 packed rows of that
/// length, 24 KiB, stay in the first-level cache while the weights stream past them.
const BLOCK_BYTES: usize = 4096;

/// Weight rows that meet some rows before the next weights are read: 64 rows of a block, at most 256 KiB, stay in
/// the second-level cache, and a packed group, once in the first, is used for 16 tiles.
pub(super) const PANEL: usize = 64;

/// Row groups that meet a panel at a time when K has several blocks, so that sums of 16 lanes must be kept between
/// them: 16 groups of 6 rows x 64 columns x 16 lanes are 393 KiB, also in the second-level cache.
const GROUPS_WITH_SUMS: usize = 16;

/// Bytes ahead of the loads that weights are prefetched when they stream from memory.
const PREFETCH_BYTES: usize = 1024;

/// Rows of a tile: 6 rows by 4 weight rows are 24 accumulators of 32 registers, 3 by 2, of two registers each, 12
/// of 16.
pub(super) const fn group_rows(wide: bool) -> usize {
    if wide { 6 } else { 3 }
}

/// f32 of working memory that a panel needs.
pub(super) const SUMS_LEN: usize = GROUPS_WITH_SUMS * 6 * PANEL * LANES;

/// All rows against some rows of weights.
pub(super) struct Panel<'a, X, W> {
    pub(super) x: &'a [X],
    pub(super) layout: Layout,
    /// Whole rows of K elements.
    pub(super) weight: &'a [W],
    /// `[rows, weight rows]`.
    pub(super) out: &'a mut [f32],
    /// [`SUMS_LEN`] elements.
    pub(super) sums: &'a mut [f32],
}

/// Steps of K, and where they are among all.
#[derive(Clone, Copy)]
struct Block {
    first_step: usize,
    steps: usize,
    tail: usize,
    prefetch: usize,
    is_first: bool,
    is_last: bool,
}

impl<X: Element, W: Element> Panel<'_, X, W> {
    /// Computes every output of the panel.
    #[inline(always)]
    pub(super) fn run<D: Dot<X = X, W = W>>(mut self, d: D) {
        let k = self.layout.k();
        let (num_groups, num_steps) = (self.layout.num_groups(), self.layout.num_steps());
        let num_cols = self.weight.len().checked_div(k).unwrap_or(0);
        // A single group of rows meets each weight once: the weights come from memory, nothing is reused.
        let streams = num_groups == 1;
        let block_steps = if streams { num_steps } else { BLOCK_BYTES / size_of::<X>() / D::STEP }.max(1);
        let num_blocks = num_steps.div_ceil(block_steps);
        let groups = if num_blocks == 1 { num_groups } else { GROUPS_WITH_SUMS };
        for col in (0..num_cols).step_by(PANEL) {
            let cols = col..num_cols.min(col + PANEL);
            for group in (0..num_groups).step_by(groups) {
                let groups = group..num_groups.min(group + groups);
                for block in 0..num_blocks {
                    let first_step = block * block_steps;
                    let last_step = num_steps.min(first_step + block_steps);
                    let whole_steps = last_step.min(k / D::STEP);
                    let block = Block {
                        first_step,
                        steps: whole_steps - first_step,
                        tail: if last_step > whole_steps { k % D::STEP } else { 0 },
                        prefetch: if streams { PREFETCH_BYTES / size_of::<W>() } else { 0 },
                        is_first: block == 0,
                        is_last: block + 1 == num_blocks,
                    };
                    self.block(d, groups.clone(), cols.clone(), block);
                }
            }
        }
    }

    #[inline(always)]
    fn block<D: Dot<X = X, W = W>>(&mut self, d: D, groups: Range<usize>, cols: Range<usize>, block: Block) {
        let mut sums = 0;
        for group in groups {
            let mut col = cols.start;
            let rows = self.layout.rows(group).len();
            while col < cols.end {
                let left = cols.end - col;
                let n = if D::S::WIDE && left >= 4 {
                    self.rows::<D, 4>(d, rows, group, col, block, sums)
                } else if !D::S::WIDE && left >= 2 {
                    self.rows::<D, 2>(d, rows, group, col, block, sums)
                } else {
                    self.rows::<D, 1>(d, rows, group, col, block, sums)
                };
                if !(block.is_first && block.is_last) {
                    sums += rows * n * LANES;
                }
                col += n;
            }
        }
    }

    /// A tile of `rows` rows; returns `N`.
    #[inline(always)]
    fn rows<D: Dot<X = X, W = W>, const N: usize>(
        &mut self,
        d: D,
        rows: usize,
        group: usize,
        col: usize,
        block: Block,
        sums: usize,
    ) -> usize {
        match rows {
            1 => self.tile::<D, 1, N>(d, group, col, block, sums),
            2 => self.tile::<D, 2, N>(d, group, col, block, sums),
            3 => self.tile::<D, 3, N>(d, group, col, block, sums),
            4 if D::S::WIDE => self.tile::<D, 4, N>(d, group, col, block, sums),
            5 if D::S::WIDE => self.tile::<D, 5, N>(d, group, col, block, sums),
            6 if D::S::WIDE => self.tile::<D, 6, N>(d, group, col, block, sums),
            _ => unreachable!("groups have at most {} rows", group_rows(D::S::WIDE)),
        }
        N
    }

    /// One tile of `M` rows and `N` weight rows; its sums, if kept, are at `sums`.
    #[inline(always)]
    fn tile<D: Dot<X = X, W = W>, const M: usize, const N: usize>(
        &mut self,
        d: D,
        group: usize,
        col: usize,
        block: Block,
        sums: usize,
    ) {
        let s = d.simd();
        let k = self.layout.k();
        debug_assert_eq!(M, self.layout.rows(group).len());
        let mut acc = [[s.splat(0.0); N]; M];
        let kept = if block.is_first && block.is_last {
            &mut []
        } else {
            &mut self.sums[sums..sums + M * N * LANES]
        };
        let (kept, _) = kept.as_chunks_mut::<LANES>();
        if !block.is_first {
            for (kept, acc) in kept.iter().zip(acc.as_flattened_mut()) {
                *acc = s.load_f32(kept);
            }
        }
        let steps = block.steps + usize::from(block.tail > 0);
        let x = &self.x[self.layout.offset(group, block.first_step)..][..steps * M * D::STEP];
        let w = &self.weight[col * k..(col + N) * k];
        // SAFETY: `x` was just cut to the rows and steps of the tile. `w` was cut to `N` rows of K elements, of
        // which the block's steps, its tail included, are a part: it starts at `first_step * STEP` and ends at
        // or before K.
        unsafe {
            let w = Weights {
                start: w.as_ptr().add(block.first_step * D::STEP),
                stride: k,
                steps: block.steps,
                tail: block.tail,
                prefetch: block.prefetch,
            };
            accumulate::<D, M, N>(d, x.as_ptr(), w, &mut acc);
        }
        if block.is_last {
            self.finish::<D, M, N>(d, group, col, acc);
        } else {
            for (kept, acc) in kept.iter_mut().zip(acc.as_flattened()) {
                s.store_f32(*acc, kept);
            }
        }
    }

    #[inline(always)]
    fn finish<D: Dot<X = X, W = W>, const M: usize, const N: usize>(
        &mut self,
        d: D,
        group: usize,
        col: usize,
        acc: [[F<D>; N]; M],
    ) {
        let s = d.simd();
        let n = self.weight.len() / self.layout.k();
        let first_row = self.layout.rows(group).start;
        for i in 0..M {
            let row = first_row + i;
            let out = &mut self.out[row * n + col..][..N];
            match (acc[i].first_chunk::<4>(), out.first_chunk_mut::<4>()) {
                (Some(acc), Some(out)) => *out = s.reduce_add4(*acc),
                _ => {
                    for j in 0..N {
                        out[j] = s.reduce_add(acc[i][j]);
                    }
                }
            }
        }
    }
}
