use minisgl_kernels::{Backend, DType};
use minisgl_reference::gather_samples;
use proptest::prelude::*;

use super::bench::{BenchCase, Workload, noise};
use super::support::{Failure, Guarded, Rng, Scene, SeqShape, dtype, expect_err, one_of, same_bits};
use super::{CheckConfig, OpCases, fixed, property};

/// What this op is checked and timed on.
pub(super) fn cases<B: Backend>() -> OpCases<B> {
    OpCases { name: "gather_samples", check, bench }
}

#[derive(Clone, Debug)]
struct Case {
    dtype: DType,
    cols: usize,
    q_lens: Vec<usize>,
    padding: usize,
    seed: u64,
}

fn strategy() -> impl Strategy<Value = Case> {
    let cols = one_of(&[1, 3, 8, 17, 64, 250, 1024]);
    let q_lens = prop::collection::vec(1..20usize, 1..9);
    (dtype(), cols, q_lens, 0..4usize, any::<u64>()).prop_map(|(dtype, cols, q_lens, padding, seed)| Case {
        dtype,
        cols,
        q_lens,
        padding,
        seed,
    })
}

fn check<B: Backend>(backend: &mut B, config: &CheckConfig) -> Result<(), String> {
    property(backend, config, strategy(), check_case)?;
    fixed(backend, "arguments that do not fit", check_refusals)
}

fn check_case<B: Backend>(backend: &mut B, _: &CheckConfig, case: &Case) -> Result<(), Failure> {
    let &Case { dtype, cols, ref q_lens, padding, seed } = case;
    let mut rng = Rng::new(seed);
    let seqs: Vec<SeqShape> = q_lens.iter().map(|&q_len| SeqShape { q_len, past: 0 }).collect();
    let mut scene = Scene::new(&mut rng, &seqs, 8, padding, 100);
    // A prompt that is not at its end asks for no sample.
    let num_samples = 1 + rng.below(seqs.len());
    let removed = num_samples..seqs.len();
    scene.inputs.samples.drain(removed.clone());
    scene.inputs.sample_tokens.drain(removed);

    let mut state = scene.device_state(backend, 100)?;
    let mut inputs = scene.device_inputs::<B>(backend)?;
    backend.begin_step(&mut inputs, &scene.inputs, &mut state, &mut [])?;
    let tokens = scene.inputs.num_tokens();
    let mut x =
        Guarded::new(backend, dtype, tokens + 1, cols, &rng.activations(scene.num_real_tokens * cols))?;
    let mut out = Guarded::poisoned(backend, dtype, scene.inputs.num_samples() + 2, cols)?;
    backend.gather_samples(&mut out.tensor, &x.tensor, &inputs)?;
    x.unchanged(backend, "x")?;
    let found = out.read_rows(backend, "out", scene.inputs.num_samples())?;
    let expected = gather_samples(&x.written(), cols, &scene.inputs.sample_tokens[..num_samples]);
    same_bits("out", &found[..expected.len()], &expected)
}

fn check_refusals<B: Backend>(backend: &mut B) -> Result<(), Failure> {
    let seq = SeqShape { q_len: 3, past: 0 };
    let scene = Scene::new(&mut Rng::new(1), &[seq, seq], 16, 0, 5);
    let mut state = scene.device_state(backend, 5)?;
    let mut inputs = scene.device_inputs::<B>(backend)?;
    backend.begin_step(&mut inputs, &scene.inputs, &mut state, &mut [])?;
    let mut tensor = |rows, cols| backend.tensor("test tensor", DType::F32, rows, cols);
    let (x, mut narrow, mut short) = (tensor(6, 8)?, tensor(2, 4)?, tensor(1, 8)?);
    expect_err("out too narrow", backend.gather_samples(&mut narrow, &x, &inputs))?;
    expect_err("out too short", backend.gather_samples(&mut short, &x, &inputs))
}

fn bench<B: Backend>(w: &Workload) -> Vec<BenchCase<B>> {
    let (w, cols) = (*w, w.model.hidden);
    vec![BenchCase::new("hidden", w.bytes_of(2 * w.seqs * cols), 0.0, move |backend: &mut B| {
        let (inputs, _, _) = super::attention::bench_step(backend, &w, w.model.vocab)?;
        let x = noise(backend, w.dtype, w.tokens(), cols)?;
        let mut out = backend.tensor("out", w.dtype, w.seqs, cols)?;
        Ok(move |backend: &mut B| backend.gather_samples(&mut out, &x, &inputs))
    })]
}
