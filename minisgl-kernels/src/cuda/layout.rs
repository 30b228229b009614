//! Where the parts of a step's upload lie. Integers only: no device.

use crate::StepInputs;

/// Sections start at multiples of this, the widest access of a kernel.
const ALIGN: usize = 16;

/// Bytes of one `msgl_sample_spec`.
pub(crate) const SAMPLE_BYTES: usize = size_of::<super::bindings::msgl_sample_spec>();

/// Byte offsets of the sections that the kernels of a step read.
///
/// They are a function of the three counts alone, so a graph that was captured for some sizes finds every later
/// step of these sizes in the same places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) num_tokens: usize,
    pub(crate) num_seqs: usize,
    pub(crate) num_samples: usize,
    pub(crate) token_ids: usize,
    pub(crate) positions: usize,
    pub(crate) slots: usize,
    pub(crate) cu_q_lens: usize,
    pub(crate) kv_lens: usize,
    pub(crate) seq_rows: usize,
    pub(crate) sample_tokens: usize,
    pub(crate) samples: usize,
    /// Bytes of all of them, a multiple of 16.
    pub(crate) size_bytes: usize,
}

impl Layout {
    pub(crate) fn new(num_tokens: usize, num_seqs: usize, num_samples: usize) -> Self {
        let mut end = 0;
        let mut section = |len: usize, elem_bytes: usize| place(&mut end, len * elem_bytes);
        Self {
            num_tokens,
            num_seqs,
            num_samples,
            token_ids: section(num_tokens, 4),
            positions: section(num_tokens, 4),
            slots: section(num_tokens, 4),
            cu_q_lens: section(num_seqs + 1, 4),
            kv_lens: section(num_seqs, 4),
            seq_rows: section(num_seqs, 4),
            sample_tokens: section(num_samples, 4),
            samples: section(num_samples, SAMPLE_BYTES),
            size_bytes: end,
        }
    }
}

/// What follows the sections in the upload: changes that are applied at once and never seen by a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tail {
    pub(crate) page_updates: usize,
    pub(crate) page_copies: usize,
    pub(crate) count_resets: usize,
    pub(crate) reset_tokens: usize,
    /// Bytes of the whole upload.
    pub(crate) size_bytes: usize,
}

impl Tail {
    pub(crate) fn new(layout: &Layout, src: &StepInputs) -> Self {
        let mut end = layout.size_bytes;
        let mut section = |len: usize, elem_bytes: usize| place(&mut end, len * elem_bytes);
        Self {
            page_updates: section(src.page_updates.len(), 12),
            page_copies: section(src.page_copies.len(), 8),
            count_resets: section(src.count_resets.len(), 16),
            reset_tokens: section(src.count_resets.iter().map(|r| r.tokens.len()).sum(), 4),
            size_bytes: end,
        }
    }
}

fn place(end: &mut usize, size_bytes: usize) -> usize {
    let start = *end;
    *end = (start + size_bytes).next_multiple_of(ALIGN);
    start
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_aligned_and_do_not_overlap() {
        for (tokens, seqs, samples) in [(0, 0, 0), (1, 1, 1), (7, 3, 2), (8192, 256, 256)] {
            let l = Layout::new(tokens, seqs, samples);
            let sections = [
                (l.token_ids, tokens * 4),
                (l.positions, tokens * 4),
                (l.slots, tokens * 4),
                (l.cu_q_lens, (seqs + 1) * 4),
                (l.kv_lens, seqs * 4),
                (l.seq_rows, seqs * 4),
                (l.sample_tokens, samples * 4),
                (l.samples, samples * SAMPLE_BYTES),
                (l.size_bytes, 0),
            ];
            for pair in sections.windows(2) {
                assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:?}");
                assert_eq!(pair[1].0 % ALIGN, 0);
            }
        }
    }

    #[test]
    fn offsets_depend_on_the_counts_alone() {
        let mut src = StepInputs { token_ids: vec![1; 5], ..Default::default() };
        let layout = Layout::new(5, 2, 1);
        let without = Tail::new(&layout, &src);
        src.page_copies = vec![(1, 2)];
        assert_eq!(Layout::new(5, 2, 1), layout);
        assert_eq!(without.size_bytes, layout.size_bytes);
        assert_eq!(Tail::new(&layout, &src).size_bytes, layout.size_bytes + 16);
    }
}
