//! Packing of the activations: the rows of a tile side by side, step by step, so that a tile reads one stream.

use std::ops::Range;

use super::super::check::Disjoint;
use super::super::simd::{Element, Kernel, LANES, Simd, load_partial};

/// Where the rows of `x` are once packed: groups of rows, in each the steps of K, in each the rows of the group,
/// in each `step` elements, the last step padded with zeros. Groups are as few as a limit on their rows allows and
/// differ by at most one row: 8 rows are 4 and 4, not 6 and 2, because a tile of 2 rows waits for its loads.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    k: usize,
    step: usize,
    rows: usize,
    num_groups: usize,
}

impl Layout {
    /// `rows` rows, at least one, of `k` elements, in groups of at most `most`.
    pub(super) fn new(rows: usize, k: usize, most: usize, step: usize) -> Self {
        Self { k, step, rows, num_groups: rows.div_ceil(most) }
    }

    pub(super) fn k(self) -> usize {
        self.k
    }

    pub(super) fn num_groups(self) -> usize {
        self.num_groups
    }

    pub(super) fn num_steps(self) -> usize {
        self.k.div_ceil(self.step)
    }

    /// The rows of a group.
    pub(super) fn rows(self, group: usize) -> Range<usize> {
        let (least, more) = (self.rows / self.num_groups, self.rows % self.num_groups);
        let start = |group: usize| group * least + group.min(more);
        start(group)..start(group + 1)
    }

    /// Index of the first element of a group's step.
    pub(super) fn offset(self, group: usize, step: usize) -> usize {
        let rows = self.rows(group);
        (rows.start * self.num_steps() + step * rows.len()) * self.step
    }

    /// Elements of all groups.
    pub(super) fn len(self) -> usize {
        self.rows * self.num_steps() * self.step
    }
}

/// Packs some groups, converting to `X`.
pub(super) struct Pack<'a, E, X> {
    pub(super) x: &'a [E],
    pub(super) packed: Disjoint<'a, X>,
    pub(super) layout: Layout,
    pub(super) groups: Range<usize>,
}

impl<E: Element, X: Element> Kernel for Pack<'_, E, X> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Layout { k, step, .. } = self.layout;
        for group in self.groups {
            let first_row = self.layout.rows(group).start;
            let rows = self.layout.rows(group).len();
            let len = rows * self.layout.num_steps() * step;
            // SAFETY: a group's elements are packed by one thread.
            let packed = unsafe { self.packed.get(self.layout.offset(group, 0), len) };
            for row in 0..rows {
                let x = &self.x[(first_row + row) * k..][..k];
                for (i, src) in x.chunks(LANES).enumerate() {
                    let start = (i * LANES / step * rows + row) * step + i * LANES % step;
                    if let Some(dst) = packed[start..].first_chunk_mut() {
                        X::store(s, load_partial(s, src), dst);
                    }
                }
                // Steps of two vectors: K can end in the first.
                let written = k.next_multiple_of(LANES);
                if written % step != 0 {
                    let start = (written / step * rows + row) * step + written % step;
                    packed[start..start + step - written % step].fill(X::ZERO);
                }
            }
        }
    }
}
