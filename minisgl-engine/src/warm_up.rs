//! The largest steps that a scheduler can make, every sequence on the first page. Integers only: no device.

use minisgl_kernels::{MAX_LOGPROBS, SampleParams, StepInputs};

/// A prompt step of `max_extend_tokens` and a token more for each of `max_running_req` sequences of up to
/// `max_seq_len` tokens, and the largest decode step.
pub(crate) fn largest_steps(
    max_running_req: usize,
    max_extend_tokens: usize,
    max_seq_len: usize,
) -> [StepInputs; 2] {
    let mut left = max_extend_tokens;
    let prompts = (0..max_running_req).map(|_| {
        let more = left.min(max_seq_len.saturating_sub(1));
        left -= more;
        1 + more
    });
    [step(prompts), step(std::iter::repeat_n(1, max_running_req))]
}

/// A decode step of `size` sequences with `len` tokens each, to choose kernels by.
pub(crate) fn decode_step(size: usize, len: usize) -> StepInputs {
    let (rows, last) = (0..size as u32, len.saturating_sub(1) as u32);
    StepInputs {
        token_ids: vec![0; size],
        positions: vec![last; size],
        slots: vec![0; size],
        cu_q_lens: (0..=size as u32).collect(),
        kv_lens: vec![len as u32; size],
        seq_rows: rows.clone().collect(),
        sample_tokens: rows.clone().collect(),
        samples: rows.map(|row| SampleParams::greedy(row, len as u32)).collect(),
        ..StepInputs::default()
    }
}

/// Sequences of these lengths from their first token on, each sampled in one of two ways.
fn step(lens: impl Iterator<Item = usize>) -> StepInputs {
    let mut step = StepInputs { cu_q_lens: vec![0], ..StepInputs::default() };
    for (row, len) in (0u32..).zip(lens) {
        let len = len as u32;
        let end = step.token_ids.len() as u32 + len;
        step.token_ids.resize(end as usize, 0);
        step.positions.extend(0..len);
        step.slots.resize(end as usize, 0);
        step.cu_q_lens.push(end);
        step.kv_lens.push(len);
        step.seq_rows.push(row);
        step.sample_tokens.push(end - 1);
        let greedy = SampleParams::greedy(row, len);
        // Filters and log probabilities run kernels that greedy sampling does not.
        step.samples.push(match row % 2 {
            0 => SampleParams {
                temperature: 1.0,
                top_k: 50,
                top_p: 0.9,
                min_p: 0.01,
                num_logprobs: MAX_LOGPROBS as i32,
                ..greedy
            },
            _ => greedy,
        });
    }
    step
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_and_every_sequence() {
        for (seqs, extend, max_len) in
            [(1, 1, 2), (4, 100, 30), (4, 1000, 30), (3, 7, 512), (256, 8192, 8192)]
        {
            let [prompts, decode] = largest_steps(seqs, extend, max_len);
            assert_eq!(prompts.num_tokens(), seqs + extend.min(seqs * (max_len - 1)));
            assert_eq!(decode.num_tokens(), seqs);
            for step in [prompts, decode] {
                assert_eq!((step.num_seqs(), step.num_samples()), (seqs, seqs));
                assert_eq!(step.cu_q_lens.len(), seqs + 1);
                assert!(step.kv_lens.iter().all(|&len| len as usize <= max_len));
                for (seq, &len) in step.kv_lens.iter().enumerate() {
                    assert_eq!(step.cu_q_lens[seq + 1] - step.cu_q_lens[seq], len);
                    assert_eq!(step.sample_tokens[seq] + 1, step.cu_q_lens[seq + 1]);
                }
            }
        }
    }

    #[test]
    fn a_step_to_choose_by_is_a_decode_step() {
        for (size, len) in [(1, 1), (3, 512), (256, 8192)] {
            let step = decode_step(size, len);
            assert_eq!((step.num_tokens(), step.num_seqs(), step.num_samples()), (size, size, size));
            let per_token = [step.positions.len(), step.slots.len(), step.kv_lens.len(), step.seq_rows.len()];
            assert_eq!(per_token, [size; 4]);
            assert!(step.positions.iter().zip(&step.kv_lens).all(|(&at, &kv_len)| at + 1 == kv_len));
        }
    }
}
