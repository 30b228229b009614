//! Packing of the activations: the rows of a tile side by side, step by step, so that a tile reads one stream.

use super::super::check::Disjoint;
use super::super::simd::{Element, Kernel, LANES, Simd, load_partial};

/// Where the rows of `x` are once packed: groups of `group` rows, in each the steps of K, in each the rows of
/// the group, in each `step` elements, the last step padded with zeros.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    pub(super) rows: usize,
    pub(super) k: usize,
    pub(super) group: usize,
    pub(super) step: usize,
}

impl Layout {
    pub(super) fn num_groups(self) -> usize {
        self.rows.div_ceil(self.group)
    }

    pub(super) fn num_steps(self) -> usize {
        self.k.div_ceil(self.step)
    }

    /// Rows in a group: the last can have fewer.
    pub(super) fn group_rows(self, group: usize) -> usize {
        self.group.min(self.rows - group * self.group)
    }

    /// Index of the first element of a group's step.
    pub(super) fn offset(self, group: usize, step: usize) -> usize {
        (group * self.group * self.num_steps() + step * self.group_rows(group)) * self.step
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
    pub(super) groups: std::ops::Range<usize>,
}

impl<E: Element, X: Element> Kernel for Pack<'_, E, X> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Layout { k, step, .. } = self.layout;
        for group in self.groups {
            let rows = self.layout.group_rows(group);
            let len = rows * self.layout.num_steps() * step;
            // SAFETY: a group's elements are packed by one thread.
            let packed = unsafe { self.packed.get(self.layout.offset(group, 0), len) };
            for row in 0..rows {
                let x = &self.x[(group * self.layout.group + row) * k..][..k];
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
