use minisgl_kernels::{Backend, PADDING, SampleParams, StepInputs};

use crate::ops::bench::{BenchCase, Workload, noise};

/// The kinds of draws that requests ask for, over a whole vocabulary.
pub(super) fn bench<B: Backend>(w: &Workload) -> Vec<BenchCase<B>> {
    if w.q_len > 1 {
        return Vec::new();
    }
    let (w, vocab) = (*w, w.model.vocab);
    let greedy = SampleParams::greedy(0, 1);
    let plain = SampleParams { temperature: 0.6, ..greedy };
    let kinds = [
        ("greedy", greedy),
        ("temperature", plain),
        ("top_k 50", SampleParams { top_k: 50, ..plain }),
        ("top_p 0.9", SampleParams { top_p: 0.9, ..plain }),
    ];
    let case = move |(name, params): (&str, SampleParams)| {
        let bytes = (w.seqs * vocab * w.logits_dtype.size_bytes()) as f64;
        BenchCase::new(name, bytes, 0.0, move |backend: &mut B| {
            let mut state = backend.seq_state(w.seqs, 1, vocab)?;
            let mut inputs = backend.inputs(w.seqs, w.seqs, w.seqs)?;
            let mut step = StepInputs { cu_q_lens: vec![0], ..StepInputs::default() };
            for row in 0..w.seqs as u32 {
                step.token_ids.push(0);
                step.positions.push(0);
                step.slots.push(PADDING);
                step.cu_q_lens.push(row + 1);
                step.kv_lens.push(1);
                step.seq_rows.push(row);
                step.sample_tokens.push(row);
                step.samples.push(SampleParams { seq_row: row, seed: u64::from(row), ..params });
            }
            backend.begin_step(&mut inputs, &step, &mut state, &mut [])?;
            let logits = noise(backend, w.logits_dtype, w.seqs, vocab)?;
            let mut out = backend.sample_buf(w.seqs)?;
            Ok(move |backend: &mut B| backend.sample(&mut out, &logits, &inputs, &mut state))
        })
    };
    kinds.into_iter().map(case).collect()
}
