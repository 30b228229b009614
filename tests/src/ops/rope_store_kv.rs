use minisgl_kernels::{AttnSpec, Backend, DType, KvLayer};
use minisgl_reference::{Precision, RopeScaling, RopeSpec, norm_rope};
use proptest::prelude::*;

use super::bench::{BenchCase, Workload, noise};
use super::support::{
    Failure, Guarded, Rng, Scene, SeqShape, close, dtype, expect_err, one_of, precision, same_bits,
};
use super::{CheckConfig, OpCases, fixed, property};

/// What this op is checked and timed on.
pub(super) fn cases<B: Backend>() -> OpCases<B> {
    OpCases { name: "rope_store_kv", check, bench }
}

#[derive(Clone, Debug)]
struct Case {
    dtype: DType,
    num_kv_heads: usize,
    group: usize,
    head_dim: usize,
    page_size: usize,
    norm: bool,
    yarn: bool,
    seqs: Vec<SeqShape>,
    padding: usize,
    seed: u64,
}

fn strategy() -> impl Strategy<Value = Case> {
    let head_dim = one_of(&[64, 96, 128, 256, 2, 6, 16, 80, 112]);
    let page_size = one_of(&[1, 2, 4, 8, 16, 32, 64, 128, 256]);
    // Now and then enough tokens for the kernels that take many at once.
    let q_len = prop_oneof![15 => 1..6usize, 1 => 128..160usize];
    let seq = (q_len, 0..300usize).prop_map(|(q_len, past)| SeqShape { q_len, past });
    let seqs = prop::collection::vec(seq, 1..5);
    let heads = (1..4usize, one_of(&[1, 2, 3, 4, 7, 8]));
    (dtype(), heads, head_dim, page_size, any::<[bool; 2]>(), seqs, 0..4usize, any::<u64>()).prop_map(
        |(dtype, (num_kv_heads, group), head_dim, page_size, [norm, yarn], seqs, padding, seed)| Case {
            dtype,
            num_kv_heads,
            group,
            head_dim,
            page_size,
            norm,
            yarn,
            seqs,
            padding,
            seed,
        },
    )
}

fn check<B: Backend>(backend: &mut B, config: &CheckConfig) -> Result<(), String> {
    property(backend, config, strategy(), |backend, config, case| {
        super::attention::unless_odd_head(check_case(backend, config, case), case.head_dim)
    })?;
    fixed(backend, "arguments that do not fit", check_refusals)
}

impl Case {
    fn spec(&self) -> AttnSpec {
        AttnSpec {
            num_heads: self.num_kv_heads * self.group,
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            scale: 1.0,
            window: None,
            page_size: self.page_size,
        }
    }

    fn rope(&self, max_position: usize) -> Vec<f64> {
        let scaling = RopeScaling::Yarn {
            factor: 4.0,
            original_max_position_embeddings: 128,
            attention_factor: None,
            beta_fast: None,
            beta_slow: None,
            mscale: None,
            mscale_all_dim: None,
            truncate: true,
        };
        let scaling = if self.yarn { scaling } else { RopeScaling::Default };
        RopeSpec { head_dim: self.head_dim, theta: 1e4, scaling }.table(max_position)
    }
}

fn check_case<B: Backend>(backend: &mut B, _: &CheckConfig, case: &Case) -> Result<(), Failure> {
    let &Case { dtype, head_dim, page_size, norm, ref seqs, padding, seed, .. } = case;
    let (mut rng, spec, eps) = (Rng::new(seed), case.spec(), 1e-6f32);
    let scene = Scene::new(&mut rng, seqs, page_size, padding, 10);
    let first_alone = Scene::new(&mut rng, &seqs[..1], page_size, 0, 10);
    let real = scene.num_real_tokens;
    let (q_cols, kv_cols, cols) = (spec.q_cols(), spec.kv_cols(), spec.qkv_cols());

    let qkv_values = rng.activations(real * cols);
    let max_position = seqs.iter().map(SeqShape::kv_len).max().unwrap_or(0);
    let mut rope = Guarded::new(backend, DType::F32, max_position, head_dim, &case.rope(max_position))?;
    let mut norms = Vec::new();
    for _ in 0..2 {
        norms.push(Guarded::new(backend, dtype, 1, head_dim, &rng.normals(head_dim, 1.0, 0.3))?);
    }

    let mut run = |backend: &mut B, scene: &Scene| {
        let (tokens, real) = (scene.inputs.num_tokens(), scene.num_real_tokens);
        let mut state = scene.device_state(backend, 10)?;
        let mut inputs = scene.device_inputs::<B>(backend)?;
        backend.begin_step(&mut inputs, &scene.inputs, &mut state, &mut [])?;
        let mut qkv = Guarded::new(backend, dtype, tokens + 2, cols, &qkv_values[..real * cols])?;
        let written = qkv.written();
        let before = rng.activations(scene.num_slots() * kv_cols);
        let (k, k_bytes) = Guarded::new(backend, dtype, scene.num_slots(), kv_cols, &before)?.split();
        let (v, v_bytes) = Guarded::new(backend, dtype, scene.num_slots(), kv_cols, &before)?.split();
        let mut kv = KvLayer { k, v, page_size };
        let (q_norm, k_norm) = (norm.then_some(&norms[0].tensor), norm.then_some(&norms[1].tensor));
        let rope_tensor = &rope.tensor;
        backend.rope_store_kv(&mut qkv.tensor, q_norm, k_norm, eps, rope_tensor, &inputs, &spec, &mut kv)?;
        rope.unchanged(backend, "rope")?;
        for norm in &mut norms {
            norm.unchanged(backend, "norm")?;
        }
        let stored = |slot: usize| !scene.inputs.slots.contains(&(slot as u32));
        let k = Guarded::join(kv.k, k_bytes).read_marked(backend, "k", stored)?;
        let v = Guarded::join(kv.v, v_bytes).read_marked(backend, "v", stored)?;
        let out = qkv.read_rows(backend, "qkv", tokens)?;
        let q: Vec<f64> = out.chunks_exact(cols).take(real).flat_map(|row| row[..q_cols].to_vec()).collect();
        let pick = |data: &[f64]| -> Vec<f64> {
            let slots = &scene.inputs.slots[..real];
            slots.iter().flat_map(|&slot| data[slot as usize * kv_cols..][..kv_cols].to_vec()).collect()
        };
        Ok::<_, Failure>((q, pick(&k), pick(&v), written))
    };
    let (q, k, v, written) = run(backend, &scene)?;
    let again = run(backend, &scene)?;
    same_bits("q, again", &again.0, &q)?;
    same_bits("k, again", &again.1, &k)?;
    let alone = run(backend, &first_alone)?;
    same_bits("q of the first sequence alone", &alone.0, &q[..alone.0.len()])?;
    same_bits("k of the first sequence alone", &alone.1, &k[..alone.1.len()])?;

    let columns = |from: usize, count: usize| -> Vec<f64> {
        written.chunks_exact(cols).take(real).flat_map(|row| row[from..from + count].to_vec()).collect()
    };
    same_bits("v", &v, &columns(q_cols + kv_cols, kv_cols))?;
    let (rope, positions) = (rope.written(), &scene.inputs.positions[..real]);
    for (what, found, heads, norm_weight) in
        [("q", &q, columns(0, q_cols), &norms[0]), ("k", &k, columns(q_cols, kv_cols), &norms[1])]
    {
        let weight = norm.then(|| norm_weight.written());
        let oracle = |p| norm_rope(&heads, head_dim, weight.as_deref(), f64::from(eps), &rope, positions, p);
        let (exact, naive) = (oracle(Precision::F64), oracle(precision(dtype)));
        // A few f32 roundings of both products of a rotation, which may cancel: bounded by the larger of what
        // the pair's two rotations give together.
        let half = head_dim / 2;
        let floor = |i: usize| {
            let partner = if i % head_dim < half { i + half } else { i - half };
            8.0 * DType::F32.epsilon() * exact[i].hypot(exact[partner])
        };
        close(what, dtype, head_dim, found, &exact, &naive, floor)?;
    }
    Ok(())
}

fn check_refusals<B: Backend>(backend: &mut B) -> Result<(), Failure> {
    let spec =
        AttnSpec { num_heads: 2, num_kv_heads: 1, head_dim: 64, scale: 1.0, window: None, page_size: 4 };
    let scene = Scene::new(&mut Rng::new(1), &[SeqShape { q_len: 3, past: 0 }], 4, 0, 5);
    let mut state = scene.device_state(backend, 5)?;
    let mut inputs = scene.device_inputs::<B>(backend)?;
    backend.begin_step(&mut inputs, &scene.inputs, &mut state, &mut [])?;
    let mut tensor = |rows, cols| backend.tensor("test tensor", DType::F32, rows, cols);
    let (mut qkv, mut narrow) = (tensor(3, 256)?, tensor(3, 128)?);
    let (rope, short_rope) = (tensor(8, 64)?, tensor(8, 32)?);
    let mut kv =
        KvLayer { k: tensor(scene.num_slots(), 64)?, v: tensor(scene.num_slots(), 64)?, page_size: 4 };
    let mut call =
        |qkv: &mut _, rope: &_| backend.rope_store_kv(qkv, None, None, 1e-6, rope, &inputs, &spec, &mut kv);
    expect_err("qkv too narrow", call(&mut narrow, &rope))?;
    expect_err("rope of another head_dim", call(&mut qkv, &short_rope))
}

fn bench<B: Backend>(w: &Workload) -> Vec<BenchCase<B>> {
    let (w, spec) = (*w, w.attn_spec());
    // Queries are read and written, keys and values read from one place and written to another.
    let bytes = w.bytes_of(2 * w.tokens() * spec.qkv_cols());
    vec![BenchCase::new("qkv", bytes, 0.0, move |backend: &mut B| {
        let (inputs, _, num_slots) = super::attention::bench_step(backend, &w, w.model.vocab)?;
        let mut qkv = noise(backend, w.dtype, w.tokens(), spec.qkv_cols())?;
        let mut kv = KvLayer {
            k: backend.tensor("k", w.dtype, num_slots, spec.kv_cols())?,
            v: backend.tensor("v", w.dtype, num_slots, spec.kv_cols())?,
            page_size: w.page_size,
        };
        let rope = noise(backend, DType::F32, w.kv_len, spec.head_dim)?;
        let mut norm = backend.tensor("norm", w.dtype, 1, spec.head_dim)?;
        backend.fill_random(&mut norm, 1.0, 0.1, 3)?;
        let has_norm = w.model.qk_norm;
        Ok(move |backend: &mut B| {
            let norm = has_norm.then_some(&norm);
            backend.rope_store_kv(&mut qkv, norm, norm, 1e-6, &rope, &inputs, &spec, &mut kv)
        })
    })]
}
