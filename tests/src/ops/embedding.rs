use minisgl_kernels::{Backend, DType};
use minisgl_reference::embedding;
use proptest::prelude::*;

use super::bench::{BenchCase, Workload, noise};
use super::support::{Failure, Guarded, Rng, Scene, SeqShape, Words, dtype, expect_err, one_of, same_bits};
use super::{CheckConfig, OpCases, fixed, property};

/// What this op is checked and timed on.
pub(super) fn cases<B: Backend>() -> OpCases<B> {
    OpCases { name: "embedding", check, bench }
}

#[derive(Clone, Debug)]
struct Case {
    dtype: DType,
    vocab: usize,
    cols: usize,
    q_lens: Vec<usize>,
    padding: usize,
    seed: u64,
}

fn strategy() -> impl Strategy<Value = Case> {
    let vocab = one_of(&[1, 2, 31, 257, 4096]);
    let cols = one_of(&[1, 2, 7, 8, 16, 33, 256, 1000, 1024]);
    let q_lens = prop::collection::vec(1..9usize, 1..6);
    (dtype(), vocab, cols, q_lens, 0..4usize, any::<u64>()).prop_map(
        |(dtype, vocab, cols, q_lens, padding, seed)| Case { dtype, vocab, cols, q_lens, padding, seed },
    )
}

fn check<B: Backend>(backend: &mut B, config: &CheckConfig) -> Result<(), String> {
    property(backend, config, strategy(), check_case)?;
    fixed(backend, "arguments that do not fit", check_refusals)
}

fn check_case<B: Backend>(backend: &mut B, _: &CheckConfig, case: &Case) -> Result<(), Failure> {
    let &Case { dtype, vocab, cols, ref q_lens, padding, seed } = case;
    let mut rng = Rng::new(seed);
    let seqs: Vec<SeqShape> = q_lens.iter().map(|&q_len| SeqShape { q_len, past: 0 }).collect();
    let mut scene = Scene::new(&mut rng, &seqs, 16, padding, vocab);
    let mut tokens: Vec<u32> =
        scene.inputs.token_ids[..scene.num_real_tokens].iter().map(|&t| t as u32).collect();

    // Decode inputs come from the token that the sequence's row sampled last.
    let mut last_tokens = vec![0xDEAD_BEEF; scene.max_rows];
    for (seq, shape) in seqs.iter().enumerate() {
        let first = scene.inputs.cu_q_lens[seq] as usize;
        if shape.q_len == 1 && rng.chance(0.7) {
            let row = scene.inputs.seq_rows[seq];
            last_tokens[row as usize] = rng.below(vocab) as u32;
            tokens[first] = last_tokens[row as usize];
            scene.inputs.token_ids[first] = -1 - row as i32;
        }
    }

    let mut state = scene.device_state(backend, vocab)?;
    Words::write_u32(backend, &mut state.last_tokens, &last_tokens)?;
    let mut inputs = scene.device_inputs::<B>(backend)?;
    backend.begin_step(&mut inputs, &scene.inputs, &mut state, &mut [])?;
    let mut table = Guarded::new(backend, dtype, vocab, cols, &rng.activations(vocab * cols))?;
    let mut out = Guarded::poisoned(backend, dtype, scene.inputs.num_tokens() + 2, cols)?;
    backend.embedding(&mut out.tensor, &table.tensor, &inputs, &state)?;
    table.unchanged(backend, "table")?;
    let found = out.read_rows(backend, "out", scene.inputs.num_tokens())?;
    same_bits("out", &found[..tokens.len() * cols], &embedding(&table.written(), cols, &tokens))?;
    let found = Words::read_u32(backend, &state.last_tokens, scene.max_rows)?;
    if found != last_tokens {
        return Err(Failure::wrong(format!("last_tokens became {found:?}, were {last_tokens:?}")));
    }
    Ok(())
}

fn check_refusals<B: Backend>(backend: &mut B) -> Result<(), Failure> {
    let scene = Scene::new(&mut Rng::new(1), &[SeqShape { q_len: 3, past: 0 }], 16, 0, 5);
    let mut state = scene.device_state(backend, 5)?;
    let mut inputs = scene.device_inputs::<B>(backend)?;
    backend.begin_step(&mut inputs, &scene.inputs, &mut state, &mut [])?;
    let mut tensor = |dtype, rows, cols| backend.tensor("test tensor", dtype, rows, cols);
    let (table, mut narrow) = (tensor(DType::F32, 5, 8)?, tensor(DType::F32, 3, 4)?);
    let (mut short, mut half) = (tensor(DType::F32, 2, 8)?, tensor(DType::F16, 3, 8)?);
    expect_err("out too narrow", backend.embedding(&mut narrow, &table, &inputs, &state))?;
    expect_err("out too short", backend.embedding(&mut short, &table, &inputs, &state))?;
    expect_err("out of another dtype", backend.embedding(&mut half, &table, &inputs, &state))
}

fn bench<B: Backend>(w: &Workload) -> Vec<BenchCase<B>> {
    let (w, cols) = (*w, w.model.hidden);
    // The table of a real vocabulary is far larger than what a step reads of it: a tenth is cold enough.
    let vocab = w.model.vocab / 10;
    vec![BenchCase::new("tokens", w.bytes_of(2 * w.tokens() * cols), 0.0, move |backend: &mut B| {
        let (inputs, state, _) = super::attention::bench_step(backend, &w, vocab)?;
        let table = noise(backend, w.dtype, vocab, cols)?;
        let mut out = backend.tensor("out", w.dtype, w.tokens(), cols)?;
        Ok(move |backend: &mut B| backend.embedding(&mut out, &table, &inputs, &state))
    })]
}
