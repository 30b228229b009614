//! What a step's integers must fulfil before they reach the device, and their reduction to lists without
//! conflicts. Pure host code.

use crate::{CountReset, KernelError, MAX_LOGPROBS, PADDING, PageUpdate, Result, StepInputs};

const OP: &str = "begin_step";

/// The sizes of what the step's indices point into.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) max_tokens: usize,
    pub(crate) max_seqs: usize,
    pub(crate) max_samples: usize,
    pub(crate) max_rows: usize,
    pub(crate) max_pages: usize,
    pub(crate) vocab: usize,
    /// Slots of the KV storage and tokens in a page; none where the step has no layer.
    pub(crate) slots: Option<(usize, usize)>,
}

/// The largest index of each kind in a step: what the ops compare with the sizes of their tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) positions: usize,
    pub(crate) slots: usize,
    pub(crate) q_tokens: usize,
    /// The fewest tokens of a sequence that has any; 0 where none has.
    pub(crate) min_q_len: usize,
    pub(crate) max_q_len: usize,
    pub(crate) max_kv_len: usize,
}

/// Checks every index of `src` against `limits`. Entries of padding may be anything.
pub(crate) fn check(src: &StepInputs, limits: &Limits) -> Result<Extent> {
    let shape = |what, found: usize, expected: usize| {
        if found == expected { Ok(()) } else { Err(KernelError::Shape { op: OP, what, expected, found }) }
    };
    let below = |what, found: usize, limit: usize| {
        if found < limit { Ok(()) } else { Err(KernelError::Index { op: OP, what, found, limit }) }
    };
    let (num_tokens, num_seqs, num_samples) = (src.num_tokens(), src.num_seqs(), src.num_samples());
    below("num_tokens", num_tokens, limits.max_tokens + 1)?;
    below("num_seqs", num_seqs, limits.max_seqs + 1)?;
    below("num_samples", num_samples, limits.max_samples + 1)?;
    shape("positions.len", src.positions.len(), num_tokens)?;
    shape("slots.len", src.slots.len(), num_tokens)?;
    shape("cu_q_lens.len", src.cu_q_lens.len(), num_seqs + 1)?;
    shape("seq_rows.len", src.seq_rows.len(), num_seqs)?;
    shape("sample_tokens.len", src.sample_tokens.len(), num_samples)?;

    let mut extent = Extent::default();
    for ((&id, &position), &slot) in src.token_ids.iter().zip(&src.positions).zip(&src.slots) {
        if slot == PADDING {
            continue;
        }
        match usize::try_from(id) {
            Ok(token) => below("token_ids", token, limits.vocab)?,
            Err(_) => below("row of token_ids", (-1 - i64::from(id)) as usize, limits.max_rows)?,
        }
        if let Some((num_slots, _)) = limits.slots {
            below("slots", slot as usize, num_slots)?;
        }
        extent.positions = extent.positions.max(position as usize + 1);
        extent.slots = extent.slots.max(slot as usize + 1);
    }
    shape("cu_q_lens[0]", src.cu_q_lens[0] as usize, 0)?;
    for (seq, ends) in src.cu_q_lens.windows(2).enumerate() {
        let q_len = ends[1].checked_sub(ends[0]).ok_or(KernelError::Index {
            op: OP,
            what: "cu_q_lens, which must not fall,",
            found: ends[0] as usize,
            limit: ends[1] as usize + 1,
        })? as usize;
        if q_len == 0 {
            continue;
        }
        let kv_len = src.kv_lens[seq] as usize;
        below("seq_rows", src.seq_rows[seq] as usize, limits.max_rows)?;
        below("q_len", q_len, kv_len + 1)?;
        if let Some((_, page_size)) = limits.slots {
            below("kv_lens", kv_len, limits.max_pages * page_size + 1)?;
        }
        extent.min_q_len = if extent.max_q_len == 0 { q_len } else { extent.min_q_len.min(q_len) };
        extent.max_q_len = extent.max_q_len.max(q_len);
        extent.max_kv_len = extent.max_kv_len.max(kv_len);
    }
    extent.q_tokens = src.cu_q_lens[num_seqs] as usize;
    below("cu_q_lens", extent.q_tokens, num_tokens + 1)?;
    for (&token, sample) in src.sample_tokens.iter().zip(&src.samples) {
        if sample.seq_row == PADDING {
            continue;
        }
        below("sample_tokens", token as usize, num_tokens)?;
        below("samples.seq_row", sample.seq_row as usize, limits.max_rows)?;
        below("samples.num_logprobs", sample.num_logprobs.max(0) as usize, MAX_LOGPROBS + 1)?;
    }
    for update in &src.page_updates {
        below("page_updates.row", update.row as usize, limits.max_rows)?;
        below("page_updates.idx", update.idx as usize, limits.max_pages)?;
        if let Some((num_slots, page_size)) = limits.slots {
            below("page_updates.page", update.page as usize, num_slots / page_size)?;
        }
    }
    for reset in &src.count_resets {
        below("count_resets.row", reset.row as usize, limits.max_rows)?;
        below("count_resets.num_prompt", reset.num_prompt as usize, reset.tokens.len() + 1)?;
        for &token in &reset.tokens {
            below("count_resets.tokens", token as usize, limits.vocab)?;
        }
    }
    if let Some((num_slots, page_size)) = limits.slots {
        for &(from, to) in &src.page_copies {
            below("page_copies.from", from as usize, num_slots / page_size)?;
            below("page_copies.to", to as usize, num_slots / page_size)?;
        }
    }
    Ok(extent)
}

/// The updates that count, in no order: where several set one entry, the last one does.
///
/// Updates of a row come as a rule with rising `idx`, which proves them distinct at the cost of one look each.
pub(crate) fn last_updates(updates: &[PageUpdate], max_rows: usize) -> Vec<PageUpdate> {
    let mut next_idx = vec![0u64; max_rows];
    let is_rising = updates.iter().all(|u| {
        let next = &mut next_idx[u.row as usize];
        let rises = u64::from(u.idx) >= *next;
        *next = u64::from(u.idx) + 1;
        rises
    });
    if is_rising {
        return updates.to_vec();
    }
    let mut last = std::collections::HashMap::new();
    for update in updates {
        last.insert((update.row, update.idx), *update);
    }
    last.into_values().collect()
}

/// The resets that count: the last one of each row, in order.
pub(crate) fn last_resets(resets: &[CountReset]) -> Vec<&CountReset> {
    let is_last = |(i, r): &(usize, &CountReset)| resets[i + 1..].iter().all(|later| later.row != r.row);
    resets.iter().enumerate().filter(is_last).map(|(_, r)| r).collect()
}

/// Lengths of the runs of `copies` that may happen at the same time: within a run no page that is written is
/// read or written by another copy.
pub(crate) fn independent_runs(copies: &[(u32, u32)]) -> Vec<usize> {
    let mut runs = Vec::new();
    let (mut read, mut written) = (std::collections::HashSet::new(), std::collections::HashSet::new());
    let mut len = 0;
    for &(from, to) in copies {
        if written.contains(&from) || written.contains(&to) || read.contains(&to) {
            runs.push(len);
            len = 0;
            read.clear();
            written.clear();
        }
        read.insert(from);
        written.insert(to);
        len += 1;
    }
    if len > 0 {
        runs.push(len);
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SampleParams;

    fn limits() -> Limits {
        Limits {
            max_tokens: 8,
            max_seqs: 4,
            max_samples: 4,
            max_rows: 4,
            max_pages: 3,
            vocab: 10,
            slots: Some((16, 2)),
        }
    }

    fn step() -> StepInputs {
        StepInputs {
            token_ids: vec![9, -4, 77],
            positions: vec![0, 1, 99],
            slots: vec![15, 0, PADDING],
            cu_q_lens: vec![0, 2, 2],
            kv_lens: vec![2, 0],
            seq_rows: vec![3, 99],
            sample_tokens: vec![1, 99],
            samples: vec![SampleParams::greedy(3, 2), SampleParams::greedy(PADDING, 0)],
            ..Default::default()
        }
    }

    #[test]
    fn a_padded_step_with_garbage_in_its_padding_is_fine() {
        let extent = check(&step(), &limits()).unwrap();
        let expected =
            Extent { positions: 2, slots: 16, q_tokens: 2, min_q_len: 2, max_q_len: 2, max_kv_len: 2 };
        assert_eq!(extent, expected);
    }

    #[test]
    fn every_index_is_checked_and_named() {
        type Break = fn(&mut StepInputs);
        let cases: [(&str, Break); 16] = [
            ("token_ids is 10", |s| s.token_ids[0] = 10),
            ("row of token_ids is 4", |s| s.token_ids[0] = -5),
            ("slots is 16", |s| s.slots[0] = 16),
            ("cu_q_lens[0]", |s| s.cu_q_lens[0] = 1),
            ("cu_q_lens, which must not fall", |s| (s.cu_q_lens[1], s.kv_lens[0]) = (3, 3)),
            ("cu_q_lens is 4", |s| s.cu_q_lens = vec![0, 2, 4]),
            ("q_len is 2, must be below 2", |s| s.kv_lens[0] = 1),
            ("kv_lens is 7", |s| s.kv_lens[0] = 7),
            ("seq_rows is 4", |s| s.seq_rows[0] = 4),
            ("sample_tokens is 3", |s| s.sample_tokens[0] = 3),
            ("samples.seq_row is 4", |s| s.samples[0].seq_row = 4),
            ("samples.num_logprobs is 21", |s| s.samples[0].num_logprobs = 21),
            ("page_updates.idx is 3", |s| s.page_updates = vec![PageUpdate { row: 0, idx: 3, page: 0 }]),
            ("page_updates.page is 8", |s| s.page_updates = vec![PageUpdate { row: 0, idx: 0, page: 8 }]),
            ("page_copies.to is 8", |s| s.page_copies = vec![(0, 8)]),
            ("count_resets.tokens is 10", |s| {
                s.count_resets = vec![CountReset { row: 0, num_prompt: 1, tokens: vec![10] }];
            }),
        ];
        for (expected, break_it) in cases {
            let mut src = step();
            break_it(&mut src);
            if expected == "cu_q_lens is 4" {
                (src.kv_lens[1], src.seq_rows[1]) = (2, 0);
            }
            let error = check(&src, &limits()).expect_err(expected).to_string();
            assert!(error.contains(expected), "'{error}' does not say '{expected}'");
        }
    }

    #[test]
    fn lists_must_have_one_length() {
        let mut src = step();
        src.positions.pop();
        assert!(check(&src, &limits()).unwrap_err().to_string().contains("positions.len is 2, expected 3"));
    }

    #[test]
    fn the_last_update_of_an_entry_wins() {
        let u = |row, idx, page| PageUpdate { row, idx, page };
        let rising = [u(0, 0, 5), u(1, 0, 6), u(0, 1, 7)];
        assert_eq!(last_updates(&rising, 2), rising);
        let mut found = last_updates(&[u(0, 0, 5), u(0, 1, 6), u(0, 0, 7)], 2);
        found.sort_by_key(|u| u.idx);
        assert_eq!(found, [u(0, 0, 7), u(0, 1, 6)]);
    }

    #[test]
    fn the_last_reset_of_a_row_wins() {
        let reset = |row, token| CountReset { row, num_prompt: 0, tokens: vec![token] };
        let resets = [reset(1, 0), reset(2, 1), reset(1, 2)];
        assert_eq!(last_resets(&resets), [&resets[1], &resets[2]]);
    }

    #[test]
    fn copies_run_together_unless_they_meet() {
        assert_eq!(independent_runs(&[]), [0usize; 0]);
        assert_eq!(independent_runs(&[(1, 2), (1, 3), (4, 5)]), [3]);
        assert_eq!(independent_runs(&[(1, 2), (2, 3), (4, 3), (3, 1)]), [1, 1, 1, 1]);
        assert_eq!(independent_runs(&[(1, 2), (3, 1)]), [1, 1]);
    }
}
