use minisgl_kernels::{AttnSpec, Backend, DType, KvLayer, SeqState};
use minisgl_reference::{self as reference, Precision, RopeScaling, RopeSpec, norm_rope};
use proptest::prelude::*;

use super::bench::{BenchCase, Workload, noise};
use super::support::{
    Failure, Guarded, Rng, Scene, SeqShape, close, dtype, expect_err, one_of, precision, same_bits,
};
use super::{CheckConfig, OpCases, fixed, property};

/// What this op is checked and timed on.
pub(super) fn cases<B: Backend>() -> OpCases<B> {
    OpCases { name: "rope_attention", check, bench }
}

const EPS: f32 = 1e-6;

#[derive(Clone, Debug)]
struct Case {
    dtype: DType,
    num_kv_heads: usize,
    group: usize,
    head_dim: usize,
    window: Option<u32>,
    page_size: usize,
    norm: bool,
    seqs: Vec<SeqShape>,
    padding: usize,
    seed: u64,
}

/// Mostly steps of one token a sequence, which backends compute in one pass: few sequences and many, short and long on
/// either side of where a recording for short ones ends.
fn strategy() -> impl Strategy<Value = Case> {
    let heads = (1..5usize, one_of(&[1, 2, 3, 4, 7, 8, 9, 16]));
    let head_dim = one_of(&[64, 128, 64, 128, 96, 256]);
    let window = prop_oneof![4 => Just(None), 1 => Just(Some(1)), 1 => (2..200u32).prop_map(Some)];
    let page_size = one_of(&[16, 16, 32, 64, 16, 32, 64, 1, 2, 256]);
    let past = prop_oneof![
        1 => Just(0usize),
        3 => 1..40usize,
        2 => 40..300usize,
        1 => 500..700usize,
        2 => one_of(&[14, 15, 16, 31, 63, 127, 128, 255, 256]),
    ];
    let decoding = past.prop_map(|past| SeqShape { q_len: 1, past });
    let mixed = (1..5usize, 0..100usize).prop_map(|(q_len, past)| SeqShape { q_len, past });
    let seqs = prop_oneof![
        5 => prop::collection::vec(decoding.clone(), 1..5),
        1 => prop::collection::vec((2040..2056usize).prop_map(|past| SeqShape { q_len: 1, past }), 1..2),
        1 => prop::collection::vec(decoding, 5..70),
        1 => prop::collection::vec(mixed, 1..4),
    ];
    let shape = (heads, head_dim, window, page_size);
    (dtype(), shape, any::<bool>(), seqs, 0..4usize, any::<u64>()).prop_map(
        |(dtype, ((num_kv_heads, group), head_dim, window, page_size), norm, seqs, padding, seed)| Case {
            dtype,
            num_kv_heads,
            group,
            head_dim,
            window,
            page_size,
            norm,
            seqs,
            padding,
            seed,
        },
    )
}

/// Contexts beyond what a recording for short ones is meant for. A kernel for short ones that took them would cut them
/// otherwise than one that is called for them, and so have other bits.
fn long_case() -> Case {
    Case {
        dtype: DType::BF16,
        num_kv_heads: 4,
        group: 4,
        head_dim: 128,
        window: None,
        page_size: 16,
        norm: true,
        seqs: vec![SeqShape { q_len: 1, past: 3000 }, SeqShape { q_len: 1, past: 2500 }],
        padding: 0,
        seed: 7,
    }
}

fn check<B: Backend>(backend: &mut B, config: &CheckConfig) -> Result<(), String> {
    let trtllm = config.attention.contains(&minisgl_kernels::AttnKernel::Trtllm);
    let pages = [16, 32, 64];
    let strategy = strategy().prop_filter("what trtllm does not take", move |case| {
        !trtllm || case.dtype != DType::F32 && pages.contains(&case.page_size)
    });
    property(backend, config, strategy, check_case)?;
    fixed(backend, "a recording replayed for long contexts", |backend| {
        check_case(backend, config, &long_case())
    })?;
    fixed(backend, "arguments that do not fit", check_refusals)
}

impl Case {
    fn spec(&self) -> AttnSpec {
        AttnSpec {
            num_heads: self.num_kv_heads * self.group,
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            window: self.window,
            page_size: self.page_size,
        }
    }

    /// Compares the rows of one sequence, `q` its projected queries, `k` and `v` what the cache then holds of it.
    fn compare(
        &self,
        what: &str,
        found: &[f64],
        q: impl Fn(Precision) -> Vec<f64>,
        k: &[f64],
        v: &[f64],
    ) -> Result<(), Failure> {
        let spec = self.spec();
        let oracle_spec = reference::AttnSpec {
            num_heads: spec.num_heads,
            num_kv_heads: spec.num_kv_heads,
            head_dim: spec.head_dim,
            scale: f64::from(spec.scale),
            window: spec.window.map(|w| w as usize),
        };
        let exact_q = q(Precision::F64);
        let oracle = |q: &[f64], v: &[f64], p| reference::attention(q, k, v, &oracle_spec, p);
        let exact = oracle(&exact_q, v, Precision::F64);
        let naive = oracle(&q(precision(self.dtype)), v, precision(self.dtype));
        let magnitudes: Vec<f64> = v.iter().map(|v| v.abs()).collect();
        let sums = oracle(&exact_q, &magnitudes, Precision::F64);
        let lost = self.rounding_of_q(&exact_q, k);
        // As in attention, and what the queries' rounding moves: a change of the scores by up to d changes a mean over
        // positions by up to 2 d of the mean magnitude.
        let floor = |i: usize| {
            (self.dtype.epsilon() / 2.0 + 8.0 * DType::F32.epsilon() + 2.0 * lost[i / self.head_dim])
                * sums[i]
        };
        close(what, self.dtype, spec.q_cols(), found, &exact, &naive, floor)
    }

    /// What rounding the rotated queries to the dtype may change of any score, for each query and head: six deviations
    /// of independent roundings (uniform up to half an ulp, so half an ulp over the root of 3 each), and nine f32
    /// roundings of the norm and the rotation before.
    fn rounding_of_q(&self, q: &[f64], k: &[f64]) -> Vec<f64> {
        let (spec, d) = (self.spec(), self.head_dim);
        let deviation = self.dtype.epsilon() / 2.0 / 3f64.sqrt();
        let heads = q.chunks_exact(d).enumerate().map(|(i, q)| {
            let kv_head = i % spec.num_heads / self.group;
            let keys = k.chunks_exact(spec.kv_cols()).map(|row| &row[kv_head * d..][..d]);
            let score = keys.map(|k| {
                let products = q.iter().zip(k).map(|(q, k)| (q * k).abs());
                let (sum, squares) =
                    products.fold((0.0, 0.0), |(sum, squares), p| (sum + p, squares + p * p));
                6.0 * deviation * f64::sqrt(squares) + 9.0 * DType::F32.epsilon() * sum
            });
            f64::from(spec.scale) * score.fold(0.0, f64::max)
        });
        heads.collect()
    }
}

fn check_case<B: Backend>(backend: &mut B, _: &CheckConfig, case: &Case) -> Result<(), Failure> {
    let &Case { dtype, head_dim, page_size, norm, ref seqs, padding, seed, .. } = case;
    let (mut rng, spec) = (Rng::new(seed), case.spec());
    let scene = Scene::new(&mut rng, seqs, page_size, padding, 10);
    let (tokens, real) = (scene.inputs.num_tokens(), scene.num_real_tokens);
    let (q_cols, kv_cols, cols) = (spec.q_cols(), spec.kv_cols(), spec.qkv_cols());

    let qkv_values = rng.activations(real * cols);
    let max_position = seqs.iter().map(SeqShape::kv_len).max().unwrap_or(0);
    let rope_spec = RopeSpec { head_dim, theta: 1e4, scaling: RopeScaling::Default };
    let mut rope = Guarded::new(backend, DType::F32, max_position, head_dim, &rope_spec.table(max_position))?;
    let mut norms = Vec::new();
    for _ in 0..2 {
        norms.push(Guarded::new(backend, dtype, 1, head_dim, &rng.normals(head_dim, 1.0, 0.3))?);
    }
    // Slots that no past position has are NaN, those of this step's positions too.
    let mut before = [(); 2].map(|()| vec![f64::NAN; scene.num_slots() * kv_cols]);
    for (i, seq) in seqs.iter().enumerate() {
        for position in 0..seq.past {
            let to = scene.slot(i, position) * kv_cols;
            for storage in &mut before {
                storage[to..to + kv_cols].copy_from_slice(&rng.normals(kv_cols, 0.0, 1.0));
            }
        }
    }
    let mut state = scene.device_state(backend, 10)?;
    let mut inputs = scene.device_inputs::<B>(backend)?;
    backend.begin_step(&mut inputs, &scene.inputs, &mut state, &mut [])?;
    let mut plan = backend.attn_plan(&spec, tokens + 3, scene.inputs.num_seqs() + 2)?;

    // What a recording is made on: the same sizes, and contexts as short as they can be.
    let mut shortest = scene.inputs.clone();
    if seqs.iter().all(|seq| seq.q_len == 1) {
        for i in 0..seqs.len() {
            (shortest.positions[i], shortest.slots[i], shortest.kv_lens[i]) = (0, scene.slot(i, 0) as u32, 1);
        }
    }
    let stored = |slot: usize| !scene.inputs.slots.contains(&(slot as u32));
    let mut run = |backend: &mut B, how: How| {
        let mut qkv = Guarded::new(backend, dtype, tokens + 2, cols, &qkv_values)?;
        let written = qkv.written();
        let (k, k_bytes) = Guarded::new(backend, dtype, scene.num_slots(), kv_cols, &before[0])?.split();
        let (v, v_bytes) = Guarded::new(backend, dtype, scene.num_slots(), kv_cols, &before[1])?.split();
        let mut kv = KvLayer { k, v, page_size };
        let mut out = Guarded::poisoned(backend, dtype, tokens + 2, q_cols)?;
        let (q_norm, k_norm) = (norm.then_some(&norms[0].tensor), norm.then_some(&norms[1].tensor));
        let mut step = |backend: &mut B, inputs: &B::Inputs, state: &SeqState<B::Buf>| {
            let (qkv, rope, kv) = (&mut qkv.tensor, &rope.tensor, &mut kv);
            backend.plan_attention(&mut plan, inputs, &spec)?;
            if how == How::OnlyStored {
                return backend.rope_store_kv(qkv, q_norm, k_norm, EPS, rope, inputs, &spec, kv);
            }
            let out = &mut out.tensor;
            backend.rope_attention(out, qkv, q_norm, k_norm, EPS, rope, kv, inputs, state, &plan, &spec)
        };
        if how == How::Recorded {
            backend.begin_step(&mut inputs, &shortest, &mut state, &mut [])?;
            let graph = backend.capture(&mut |backend| step(backend, &inputs, &state))?;
            backend.begin_step(&mut inputs, &scene.inputs, &mut state, &mut [])?;
            backend.replay(&graph)?;
        } else {
            step(backend, &inputs, &state)?;
        }
        rope.unchanged(backend, "rope")?;
        for norm in &mut norms {
            norm.unchanged(backend, "norm")?;
        }
        qkv.read_rows(backend, "qkv", tokens)?;
        let k = Guarded::join(kv.k, k_bytes).read_marked(backend, "k", stored)?;
        let v = Guarded::join(kv.v, v_bytes).read_marked(backend, "v", stored)?;
        let out = out.read_rows(backend, "out", tokens)?[..real * q_cols].to_vec();
        Ok::<_, Failure>((out, k, v, written))
    };
    let (out, k, v, written) = run(backend, How::Called)?;
    let again = if backend.has_graphs() { How::Recorded } else { How::Called };
    let again = run(backend, again)?;
    let (_, only_k, only_v, _) = run(backend, How::OnlyStored)?;
    let rows = |data: &[f64], slots: &mut dyn Iterator<Item = usize>| -> Vec<f64> {
        slots.flat_map(|slot| data[slot * kv_cols..][..kv_cols].to_vec()).collect()
    };
    let new_rows =
        |data: &[f64]| rows(data, &mut scene.inputs.slots[..real].iter().map(|&slot| slot as usize));
    same_bits("k, as rope_store_kv stores it", &new_rows(&k), &new_rows(&only_k))?;
    same_bits("v, as rope_store_kv stores it", &new_rows(&v), &new_rows(&only_v))?;
    same_bits("out, again", &again.0, &out)?;
    same_bits("k, again", &new_rows(&again.1), &new_rows(&k))?;
    same_bits("v, again", &new_rows(&again.2), &new_rows(&v))?;

    let (rope, q_norm) = (rope.written(), norm.then(|| norms[0].written()));
    for (i, seq) in seqs.iter().enumerate() {
        let tokens = scene.inputs.cu_q_lens[i] as usize..scene.inputs.cu_q_lens[i + 1] as usize;
        let positions = &scene.inputs.positions[tokens.clone()];
        let projected: Vec<f64> =
            tokens.clone().flat_map(|t| written[t * cols..t * cols + q_cols].to_vec()).collect();
        let q = |p| norm_rope(&projected, head_dim, q_norm.as_deref(), f64::from(EPS), &rope, positions, p);
        let of_seq =
            |data: &[f64]| rows(data, &mut (0..seq.kv_len()).map(|position| scene.slot(i, position)));
        let found = &out[tokens.start * q_cols..tokens.end * q_cols];
        case.compare(&format!("out of sequence {i}"), found, q, &of_seq(&k), &of_seq(&v))?;
    }
    Ok(())
}

/// Ways to run a step.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Called,
    Recorded,
    /// Without attention.
    OnlyStored,
}

fn check_refusals<B: Backend>(backend: &mut B) -> Result<(), Failure> {
    let spec =
        AttnSpec { num_heads: 2, num_kv_heads: 1, head_dim: 64, scale: 1.0, window: None, page_size: 16 };
    let scene = Scene::new(&mut Rng::new(1), &[SeqShape { q_len: 1, past: 3 }], 16, 0, 5);
    let mut state = scene.device_state(backend, 5)?;
    let mut inputs = scene.device_inputs::<B>(backend)?;
    backend.begin_step(&mut inputs, &scene.inputs, &mut state, &mut [])?;
    let mut plan = backend.attn_plan(&spec, 8, 4)?;
    backend.plan_attention(&mut plan, &inputs, &spec)?;
    let mut tensor = |dtype, rows, cols| backend.tensor("test tensor", dtype, rows, cols);
    let (mut qkv, mut narrow) = (tensor(DType::BF16, 1, 256)?, tensor(DType::BF16, 1, 128)?);
    let (mut out, mut wide) = (tensor(DType::BF16, 1, 128)?, tensor(DType::BF16, 1, 192)?);
    let (rope, short_rope) = (tensor(DType::F32, 8, 64)?, tensor(DType::F32, 2, 64)?);
    let (norm, long_norm) = (tensor(DType::BF16, 1, 64)?, tensor(DType::BF16, 1, 128)?);
    let (k, v) = (tensor(DType::BF16, scene.num_slots(), 64)?, tensor(DType::BF16, scene.num_slots(), 64)?);
    let mut kv = KvLayer { k, v, page_size: 16 };
    let mut call = |out: &mut _, qkv: &mut _, norm, rope: &_| {
        backend.rope_attention(out, qkv, norm, norm, EPS, rope, &mut kv, &inputs, &state, &plan, &spec)
    };
    expect_err("out too wide", call(&mut wide, &mut qkv, None, &rope))?;
    expect_err("qkv too narrow", call(&mut out, &mut narrow, None, &rope))?;
    expect_err("rope too short", call(&mut out, &mut qkv, None, &short_rope))?;
    expect_err("norm of another head_dim", call(&mut out, &mut qkv, Some(&long_norm), &rope))?;
    Ok(call(&mut out, &mut qkv, Some(&norm), &rope)?)
}

fn bench<B: Backend>(w: &Workload) -> Vec<BenchCase<B>> {
    let (w, spec) = (*w, w.attn_spec());
    if w.q_len != 1 {
        return Vec::new();
    }
    let kv_bytes = w.bytes_of(2 * w.kv_lens().iter().sum::<usize>() * spec.kv_cols());
    let bytes = kv_bytes + w.bytes_of(w.tokens() * (spec.qkv_cols() + spec.q_cols()));
    let flops = 4.0 * (w.kv_lens().into_iter().sum::<usize>() * spec.q_cols()) as f64;
    vec![BenchCase::new("decode", bytes, flops, move |backend: &mut B| {
        let (inputs, state, num_slots) = super::attention::bench_step(backend, &w, w.model.vocab)?;
        let mut plan = backend.attn_plan(&spec, w.tokens(), w.seqs)?;
        backend.plan_attention(&mut plan, &inputs, &spec)?;
        let mut qkv = noise(backend, w.dtype, w.tokens(), spec.qkv_cols())?;
        let mut out = backend.tensor("out", w.dtype, w.tokens(), spec.q_cols())?;
        let rope = noise(backend, DType::F32, w.kv_len, spec.head_dim)?;
        let mut norm = backend.tensor("norm", w.dtype, 1, spec.head_dim)?;
        backend.fill_random(&mut norm, 1.0, 0.1, 3)?;
        let mut layers = super::attention::bench_layers(backend, &w, num_slots, kv_bytes)?;
        let has_norm = w.model.qk_norm;
        Ok(move |backend: &mut B| {
            let (kv, norm) = (layers.turn(), has_norm.then_some(&norm));
            backend.rope_attention(
                &mut out, &mut qkv, norm, norm, 1e-6, &rope, kv, &inputs, &state, &plan, &spec,
            )
        })
    })]
}
