//! One block of queries under one KV head.

use std::ops::Range;

use super::gather::{Head, Pages, gather_keys, gather_values, slots};
use super::softmax::{EMPTY, Running, update};
use super::tile::{accumulate, score};
use super::{ROWS, TILE};
use crate::AttnSpec;
use crate::cpu::check::Disjoint;
use crate::cpu::scratch::Scratch;
use crate::cpu::simd::{Element, Kernel, LANES, Simd, load_any, store_any};

/// A task; see the parent module.
pub(super) struct Task<'a, E> {
    pub(super) spec: &'a AttnSpec,
    pub(super) kv_head: usize,
    /// Packed index and position of the first query.
    pub(super) first_token: usize,
    pub(super) first_position: usize,
    pub(super) num_queries: usize,
    /// `[tokens, qkv_cols]`, `[slots, kv_cols]` twice, and `[tokens, q_cols]`.
    pub(super) queries: &'a [E],
    pub(super) keys: &'a [E],
    pub(super) values: &'a [E],
    pub(super) pages: Pages<'a>,
    pub(super) out: Disjoint<'a, E>,
}

/// A task with the memory to run it in.
pub(super) struct Run<'a, E> {
    pub(super) task: Task<'a, E>,
    pub(super) scratch: &'a mut Scratch,
}

/// Sizes that follow from the task.
#[derive(Clone, Copy)]
struct Sizes {
    head_dim: usize,
    /// `head_dim` rounded up to whole vectors.
    padded: usize,
    /// Query heads of a KV head.
    group: usize,
    rows: usize,
    window: usize,
    first_position: usize,
}

impl Sizes {
    /// Positions that a row sees: up to its own, and with a window only the last ones.
    #[inline(always)]
    fn seen(&self, row: usize) -> Range<usize> {
        let end = self.first_position + row / self.group + 1;
        end.saturating_sub(self.window)..end
    }

    /// The part of [`seen`](Self::seen) in the tile that starts at `start`, relative to it; empty parts vary.
    #[inline(always)]
    fn seen_in_tile(&self, row: usize, start: usize) -> Range<usize> {
        let seen = self.seen(row);
        seen.start.saturating_sub(start).min(TILE)..seen.end.saturating_sub(start).min(TILE)
    }
}

/// Working memory of a task. Its rows are in the order of queries, then of heads in the group.
struct Work<'a> {
    /// `[rows, head_dim]`, scaled.
    queries: &'a mut [f32],
    /// `[rows, padded]`: values weighted by exponentials.
    sums: &'a mut [f32],
    /// `[padded, TILE]`.
    keys: &'a mut [f32],
    /// `[TILE, padded]`.
    values: &'a mut [f32],
    /// `[ROWS, TILE]`.
    scores: &'a mut [f32],
    /// `[rows]`.
    running: &'a mut [Running],
}

impl<E: Element> Kernel for Run<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { task, scratch } = self;
        let spec = task.spec;
        let group = spec.num_heads / spec.num_kv_heads;
        let sizes = Sizes {
            head_dim: spec.head_dim,
            padded: spec.head_dim.next_multiple_of(LANES),
            group,
            rows: task.num_queries * group,
            window: spec.window.map_or(usize::MAX, |w| w as usize),
            first_position: task.first_position,
        };
        let Sizes { head_dim, padded, rows, .. } = sizes;
        // Each part starts at a cache line.
        let lens = [2 * rows, rows * head_dim, rows * padded, padded * TILE, TILE * padded, ROWS * TILE];
        let lens = lens.map(|len| len.next_multiple_of(LANES));
        let memory = scratch.get::<f32>(lens.iter().sum());
        let (running, memory) = memory.split_at_mut(lens[0]);
        let (queries, memory) = memory.split_at_mut(lens[1]);
        let (sums, memory) = memory.split_at_mut(lens[2]);
        let (keys, memory) = memory.split_at_mut(lens[3]);
        let (values, scores) = memory.split_at_mut(lens[4]);
        let (running, _) = running.as_chunks_mut::<2>();
        sums.fill(0.0);
        running.fill(EMPTY);
        let mut work = Work { queries, sums, keys, values, scores, running };

        task.load_queries(s, &sizes, work.queries);
        let (keys, values) = (task.head(task.keys), task.head(task.values));
        let seen = sizes.seen(0).start..sizes.seen(rows - 1).end;
        for tile in seen.start / TILE..seen.end.div_ceil(TILE) {
            let start = tile * TILE;
            let valid = seen.start.saturating_sub(start)..TILE.min(seen.end - start);
            let slots = slots(&task.pages, tile, valid);
            gather_keys(s, &keys, &slots, work.keys);
            gather_values(s, &values, &slots, padded, work.values);
            s.call(Tile { work: &mut work, sizes: &sizes, start });
        }
        task.store(s, &sizes, &work);
    }
}

impl<E: Element> Task<'_, E> {
    #[inline(always)]
    fn head<'h>(&self, rows: &'h [E]) -> Head<'h, E> {
        let head_dim = self.spec.head_dim;
        Head { rows, cols: self.spec.kv_cols(), first_col: self.kv_head * head_dim, head_dim }
    }

    #[inline(always)]
    fn load_queries<S: Simd>(&self, s: S, sizes: &Sizes, queries: &mut [f32]) {
        let scale = s.splat(self.spec.scale);
        for (row, dst) in queries.chunks_exact_mut(sizes.head_dim).take(sizes.rows).enumerate() {
            let token = self.first_token + row / sizes.group;
            let head = self.kv_head * sizes.group + row % sizes.group;
            let src = &self.queries[token * self.spec.qkv_cols() + head * sizes.head_dim..][..sizes.head_dim];
            for (src, dst) in src.chunks(LANES).zip(dst.chunks_mut(LANES)) {
                store_any(s, s.mul(load_any(s, src), scale), dst);
            }
        }
    }

    #[inline(always)]
    fn store<S: Simd>(&self, s: S, sizes: &Sizes, work: &Work<'_>) {
        for (row, sums) in work.sums.chunks_exact(sizes.padded).take(sizes.rows).enumerate() {
            let token = self.first_token + row / sizes.group;
            let head = self.kv_head * sizes.group + row % sizes.group;
            let start = token * self.spec.q_cols() + head * sizes.head_dim;
            // SAFETY: a query head of a token belongs to one task, and a task to one thread.
            let dst = unsafe { self.out.get(start, sizes.head_dim) };
            let total = s.splat(work.running[row][1]);
            for (sums, dst) in sums.chunks(LANES).zip(dst.chunks_mut(LANES)) {
                store_any(s, s.div(load_any(s, sums), total), dst);
            }
        }
    }
}

/// The tile that starts at position `start`, gathered, against all rows. Knows no element type: it is compiled
/// once for each instruction set.
struct Tile<'t, 'w> {
    work: &'t mut Work<'w>,
    sizes: &'t Sizes,
    start: usize,
}

impl Kernel for Tile<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let rows = self.sizes.rows;
        let mut row = 0;
        while row < rows {
            row += match rows - row {
                ROWS.. if S::WIDE => self.rows::<S, ROWS>(s, row),
                4.. if S::WIDE => self.rows::<S, 4>(s, row),
                2.. => self.rows::<S, 2>(s, row),
                _ => self.rows::<S, 1>(s, row),
            };
        }
    }
}

impl Tile<'_, '_> {
    /// Adds the tile to `M` rows from `first` on; returns `M`.
    #[inline(always)]
    fn rows<S: Simd, const M: usize>(&mut self, s: S, first: usize) -> usize {
        let Sizes { head_dim, padded, .. } = *self.sizes;
        let seen: [Range<usize>; M] = std::array::from_fn(|r| self.sizes.seen_in_tile(first + r, self.start));
        if seen.iter().all(Range::is_empty) {
            return M;
        }
        let work = &mut *self.work;
        let queries = &work.queries[first * head_dim..(first + M) * head_dim];
        let sums = &mut work.sums[first * padded..(first + M) * padded];
        let values = &*work.values;
        score::<S, M>(s, queries, head_dim, work.keys, work.scores);
        let (scores, _) = work.scores.as_chunks_mut::<TILE>();
        for r in 0..M {
            if seen[r].is_empty() {
                continue;
            }
            let factor = update(s, &mut scores[r], seen[r].clone(), &mut work.running[first + r]);
            if factor != 1.0 {
                for sum in sums[r * padded..(r + 1) * padded].as_chunks_mut::<LANES>().0 {
                    s.store_f32(s.mul(s.load_f32(sum), s.splat(factor)), sum);
                }
            }
        }
        // Positions that every row sees are added to all rows at once; those before and after, at the edge of a
        // window and at the diagonal, to the rows that see them. A value that a row does not see is not even
        // multiplied by 0, or a NaN in a later token would reach it.
        let start = seen.iter().map(|seen| seen.start).max().unwrap_or(0);
        let end = seen.iter().map(|seen| seen.end).min().unwrap_or(0).max(start);
        let rows = scores.iter().zip(sums.chunks_exact_mut(padded)).zip(&seen);
        for ((scores, sums), seen) in rows {
            let range = seen.start..seen.end.min(start);
            if !range.is_empty() {
                s.call(AccumulateRow { probabilities: scores, values, padded, range, sums });
            }
        }
        accumulate::<S, M>(s, scores.as_flattened(), values, padded, start..end, sums);
        let rows = scores.iter().zip(sums.chunks_exact_mut(padded)).zip(&seen);
        for ((scores, sums), seen) in rows {
            let range = seen.start.max(end)..seen.end;
            if !range.is_empty() {
                s.call(AccumulateRow { probabilities: scores, values, padded, range, sums });
            }
        }
        M
    }
}

/// [`accumulate`] of one row.
struct AccumulateRow<'a> {
    probabilities: &'a [f32],
    values: &'a [f32],
    padded: usize,
    range: Range<usize>,
    sums: &'a mut [f32],
}

impl Kernel for AccumulateRow<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        accumulate::<S, 1>(s, self.probabilities, self.values, self.padded, self.range, self.sums);
    }
}
