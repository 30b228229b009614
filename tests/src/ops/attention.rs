use minisgl_kernels::{
    AttnKernel, AttnSpec, Backend, DType, KernelError, KvLayer, Result as KernelResult, SeqState,
};
use minisgl_reference::{self as reference, Precision};
use proptest::prelude::*;

use super::bench::{BenchCase, Rotation, Workload, noise};
use super::support::{
    Failure, Guarded, Rng, Scene, SeqShape, close, dtype, expect_err, one_of, precision, same_bits,
};
use super::{CheckConfig, OpCases, fixed, property};

/// What this op is checked and timed on.
pub(super) fn cases<B: Backend>() -> OpCases<B> {
    OpCases { name: "attention", check, bench }
}

const TRTLLM_HEAD_DIMS: [usize; 4] = [64, 96, 128, 256];
const TRTLLM_PAGE_SIZES: [usize; 3] = [16, 32, 64];

#[derive(Clone, Debug)]
struct Case {
    dtype: DType,
    num_kv_heads: usize,
    group: usize,
    head_dim: usize,
    window: Option<u32>,
    page_size: usize,
    other_page_size: usize,
    seqs: Vec<SeqShape>,
    padding: usize,
    /// Factor on the queries: large ones make the softmax sharp.
    sharpness: f64,
    seed: u64,
}

/// What a backend promises to run: any page size, any even head and every dtype, or only what `trtllm` takes.
fn strategy(trtllm: bool) -> impl Strategy<Value = Case> {
    let heads = (1..4usize, one_of(&[1, 2, 3, 4, 7, 8, 5]));
    let head_dim = one_of(if trtllm { &TRTLLM_HEAD_DIMS } else { &[64, 96, 128, 256, 2, 6, 80] });
    let dtype = dtype().prop_filter("trtllm in f32", move |&dtype| !trtllm || dtype != DType::F32);
    let window = prop_oneof![3 => Just(None), 1 => Just(Some(1)), 1 => (2..200u32).prop_map(Some)];
    let page_sizes: &[usize] = if trtllm { &TRTLLM_PAGE_SIZES } else { &[1, 2, 4, 8, 16, 32, 64, 128, 256] };
    let page_size = || one_of(page_sizes);
    let q_len = prop_oneof![3 => Just(1usize), 2 => 2..9usize, 1 => 9..70usize];
    // The past ends on, before and after borders of pages and tiles.
    let past = prop_oneof![2 => Just(0usize), 3 => 1..40usize, 2 => 40..300usize, 1 => 500..700usize];
    let border = one_of(&[0, 15, 16, 63, 64, 127, 255, 256]);
    let seq = (q_len, prop_oneof![2 => past, 1 => border]).prop_map(|(q_len, past)| SeqShape { q_len, past });
    let seqs = prop::collection::vec(seq, 1..5);
    let sharpness = prop::sample::select(vec![1.0, 0.05, 4.0]);
    (dtype, heads, head_dim, window, (page_size(), page_size()), seqs, 0..3usize, sharpness, any::<u64>())
        .prop_map(
            |(dtype, (num_kv_heads, group), head_dim, window, pages, seqs, padding, sharpness, seed)| Case {
                dtype,
                num_kv_heads,
                group,
                head_dim,
                window,
                page_size: pages.0,
                other_page_size: pages.1,
                seqs,
                padding,
                sharpness,
                seed,
            },
        )
}

fn check<B: Backend>(backend: &mut B, config: &CheckConfig) -> Result<(), String> {
    let trtllm = config.attention.contains(&AttnKernel::Trtllm);
    property(backend, config, strategy(trtllm), |backend, config, case| {
        unless_odd_head(check_case(backend, config, case), case.head_dim)
    })?;
    fixed(backend, "more sequences than a kernel plans at a time", |backend| {
        check_case(backend, config, &Case::of_many_sequences())
    })?;
    if trtllm {
        fixed(backend, "a page that trtllm does not take", check_trtllm_refusal)?;
    }
    fixed(backend, "arguments that do not fit", check_refusals)
}

/// A backend may refuse a `head_dim` other than 64, 96, 128 and 256, which are those of the supported models.
pub(super) fn unless_odd_head(result: Result<(), Failure>, head_dim: usize) -> Result<(), Failure> {
    match result {
        Err(failure) if failure.is_unsupported() && ![64, 96, 128, 256].contains(&head_dim) => Ok(()),
        result => result,
    }
}

/// One sequence's data, by position: independent of how it is laid out.
struct SeqData {
    /// `[q_len, q_cols]`, of the last `q_len` positions.
    q: Vec<f64>,
    /// `[kv_len, kv_cols]`.
    k: Vec<f64>,
    /// `[kv_len, kv_cols]`.
    v: Vec<f64>,
}

impl Case {
    /// The plan's kernel has a thread for each sequence, 1,024 at a time.
    fn of_many_sequences() -> Self {
        Self {
            dtype: DType::BF16,
            num_kv_heads: 1,
            group: 2,
            head_dim: 64,
            window: None,
            page_size: 16,
            other_page_size: 32,
            seqs: (0..1100).map(|i| SeqShape { q_len: 1, past: i % 37 }).collect(),
            padding: 1,
            sharpness: 1.0,
            seed: 1,
        }
    }

    fn spec(&self, page_size: usize) -> AttnSpec {
        AttnSpec {
            num_heads: self.num_kv_heads * self.group,
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            window: self.window,
            page_size,
        }
    }

    fn data(&self, rng: &mut Rng) -> Vec<SeqData> {
        let (spec, p) = (self.spec(1), precision(self.dtype));
        let mut stored = |n: usize, scale: f64| -> Vec<f64> {
            rng.normals(n, 0.0, scale).iter().map(|&x| p.store(x)).collect()
        };
        let data = |seq: &SeqShape| SeqData {
            q: stored(seq.q_len * spec.q_cols(), self.sharpness),
            k: stored(seq.kv_len() * spec.kv_cols(), 1.0),
            v: stored(seq.kv_len() * spec.kv_cols(), 1.0),
        };
        self.seqs.iter().map(data).collect()
    }

    /// Runs one step over `parts`: for each sequence in it, which of `seqs` and which of its queries. Keys and
    /// values past a part's last query do not exist yet. Returns the output rows of each part.
    fn run<B: Backend>(
        &self,
        backend: &mut B,
        rng: &mut Rng,
        data: &[SeqData],
        parts: &[(usize, std::ops::Range<usize>)],
        page_size: usize,
    ) -> Result<Vec<Vec<f64>>, Failure> {
        let (spec, dtype) = (self.spec(page_size), self.dtype);
        let (q_cols, kv_cols, cols) = (spec.q_cols(), spec.kv_cols(), spec.qkv_cols());
        let shape = |(seq, queries): &(usize, std::ops::Range<usize>)| SeqShape {
            q_len: queries.len(),
            past: self.seqs[*seq].past + queries.start,
        };
        let shapes: Vec<SeqShape> = parts.iter().map(shape).collect();
        let scene = Scene::new(rng, &shapes, page_size, self.padding, 10);
        let (tokens, real) = (scene.inputs.num_tokens(), scene.num_real_tokens);

        // Free slots, the keys and values in qkv and whatever is behind the last row are NaN.
        let mut storage = [(); 2].map(|()| vec![f64::NAN; scene.num_slots() * kv_cols]);
        let mut qkv = vec![f64::NAN; real * cols];
        for (i, (seq, queries)) in parts.iter().enumerate() {
            for position in 0..shapes[i].kv_len() {
                let to = scene.slot(i, position) * kv_cols;
                storage[0][to..to + kv_cols].copy_from_slice(&data[*seq].k[position * kv_cols..][..kv_cols]);
                storage[1][to..to + kv_cols].copy_from_slice(&data[*seq].v[position * kv_cols..][..kv_cols]);
            }
            let first = scene.inputs.cu_q_lens[i] as usize;
            for (row, query) in queries.clone().enumerate() {
                qkv[(first + row) * cols..][..q_cols]
                    .copy_from_slice(&data[*seq].q[query * q_cols..][..q_cols]);
            }
        }
        let [k, v] = storage;
        let (k, k_bytes) = Guarded::new(backend, dtype, scene.num_slots(), kv_cols, &k)?.split();
        let (v, v_bytes) = Guarded::new(backend, dtype, scene.num_slots(), kv_cols, &v)?.split();
        let mut kv = [KvLayer { k, v, page_size }];
        // Layers share a plan: what a launch with other queries leaves in it must not show.
        let others: Vec<_> = qkv.iter().map(|x| 1.0 - x).collect();
        let others = Guarded::new(backend, dtype, tokens + 2, cols, &others)?;
        let mut qkv = Guarded::new(backend, dtype, tokens + 2, cols, &qkv)?;
        let mut state = scene.device_state(backend, 10)?;
        let mut inputs = scene.device_inputs::<B>(backend)?;
        backend.begin_step(&mut inputs, &scene.inputs, &mut state, &mut kv)?;
        let mut plan = backend.attn_plan(&spec, tokens + 3, scene.inputs.num_seqs() + 2)?;
        backend.plan_attention(&mut plan, &inputs, &spec)?;
        let [kv] = kv;
        let mut outs = Vec::new();
        let mut unused = Guarded::poisoned(backend, dtype, tokens + 2, q_cols)?;
        backend.attention(&mut unused.tensor, &others.tensor, &kv, &inputs, &state, &plan, &spec)?;
        for _ in 0..2 {
            let mut out = Guarded::poisoned(backend, dtype, tokens + 2, q_cols)?;
            backend.attention(&mut out.tensor, &qkv.tensor, &kv, &inputs, &state, &plan, &spec)?;
            outs.push(out.read_rows(backend, "out", tokens)?[..real * q_cols].to_vec());
        }
        same_bits("out, again", &outs[1], &outs[0])?;
        qkv.unchanged(backend, "qkv")?;
        Guarded::join(kv.k, k_bytes).unchanged(backend, "k")?;
        Guarded::join(kv.v, v_bytes).unchanged(backend, "v")?;
        let cu_q_lens = scene.inputs.cu_q_lens.windows(2).take(parts.len());
        Ok(cu_q_lens.map(|w| outs[0][w[0] as usize * q_cols..w[1] as usize * q_cols].to_vec()).collect())
    }

    fn compare(&self, what: &str, found: &[f64], data: &SeqData) -> Result<(), Failure> {
        let spec = self.spec(1);
        let oracle_spec = reference::AttnSpec {
            num_heads: spec.num_heads,
            num_kv_heads: spec.num_kv_heads,
            head_dim: spec.head_dim,
            scale: f64::from(spec.scale),
            window: self.window.map(|w| w as usize),
        };
        let oracle = |q: &[f64], k: &[f64], v: &[f64], p| reference::attention(q, k, v, &oracle_spec, p);
        let exact = oracle(&data.q, &data.k, &data.v, Precision::F64);
        let naive = oracle(&data.q, &data.k, &data.v, precision(self.dtype));
        let magnitudes: Vec<f64> = data.v.iter().map(|v| v.abs()).collect();
        let sums = oracle(&data.q, &data.k, &magnitudes, Precision::F64);
        // Weights are rounded to storage before they meet the values, as every tensor-core kernel does and the
        // naive run too; f32 scores of a sharp softmax are off by more than one rounding of their result.
        let score = 8.0 * self.sharpness.max(1.0) * DType::F32.epsilon();
        let floor = |i: usize| (self.dtype.epsilon() / 2.0 + score) * sums[i];
        close(what, self.dtype, spec.q_cols(), found, &exact, &naive, floor)
    }
}

fn check_case<B: Backend>(backend: &mut B, config: &CheckConfig, case: &Case) -> Result<(), Failure> {
    let mut rng = Rng::new(case.seed);
    let data = case.data(&mut rng);
    let whole: Vec<_> = case.seqs.iter().enumerate().map(|(i, seq)| (i, 0..seq.q_len)).collect();
    let found = case.run(backend, &mut rng, &data, &whole, case.page_size)?;
    for (i, data) in data.iter().enumerate() {
        case.compare(&format!("out of sequence {i}"), &found[i], data)?;
    }

    // The same sequences once more: pages of another size, other neighbours, prompts in two chunks.
    let q_cols = case.spec(1).q_cols();
    let mut steps = [Vec::new(), Vec::new()];
    for (i, seq) in case.seqs.iter().enumerate().rev() {
        let cut = rng.below(seq.q_len + 1);
        for (step, queries) in [(0, 0..cut), (1, cut..seq.q_len)] {
            if !queries.is_empty() {
                steps[step].push((i, queries));
            }
        }
    }
    for parts in steps.iter().filter(|parts| !parts.is_empty()) {
        let chunks = case.run(backend, &mut rng, &data, parts, case.other_page_size)?;
        for ((seq, queries), chunk) in parts.iter().zip(chunks) {
            let what =
                format!("sequence {seq}, queries {queries:?} alone, pages of {}", case.other_page_size);
            if config.batch_invariant {
                same_bits(&what, &chunk, &found[*seq][queries.start * q_cols..queries.end * q_cols])?;
                continue;
            }
            let kv_len = case.seqs[*seq].past + queries.end;
            let (data, kv_cols) = (&data[*seq], case.spec(1).kv_cols());
            let part = SeqData {
                q: data.q[queries.start * q_cols..queries.end * q_cols].to_vec(),
                k: data.k[..kv_len * kv_cols].to_vec(),
                v: data.v[..kv_len * kv_cols].to_vec(),
            };
            case.compare(&what, &chunk, &part)?;
        }
    }
    Ok(())
}

fn check_trtllm_refusal<B: Backend>(backend: &mut B) -> Result<(), Failure> {
    let spec =
        AttnSpec { num_heads: 2, num_kv_heads: 1, head_dim: 64, scale: 1.0, window: None, page_size: 8 };
    match backend.attn_plan(&spec, 8, 4) {
        Err(KernelError::Unsupported { what, supported, .. })
            if what.contains("page_size 8") && supported.contains("16, 32 or 64") =>
        {
            Ok(())
        }
        Err(other) => Err(Failure::wrong(format!("refused for another reason: {other}"))),
        Ok(_) => Err(Failure::wrong("accepted")),
    }
}

fn check_refusals<B: Backend>(backend: &mut B) -> Result<(), Failure> {
    let spec =
        AttnSpec { num_heads: 2, num_kv_heads: 1, head_dim: 64, scale: 1.0, window: None, page_size: 16 };
    let scene = Scene::new(&mut Rng::new(1), &[SeqShape { q_len: 3, past: 0 }], 16, 0, 5);
    let mut state = scene.device_state(backend, 5)?;
    let mut inputs = scene.device_inputs::<B>(backend)?;
    backend.begin_step(&mut inputs, &scene.inputs, &mut state, &mut [])?;
    let mut plan = backend.attn_plan(&spec, 8, 4)?;
    backend.plan_attention(&mut plan, &inputs, &spec)?;
    let mut tensor = |dtype, rows, cols| backend.tensor("test tensor", dtype, rows, cols);
    let (qkv, mut out) = (tensor(DType::BF16, 3, 256)?, tensor(DType::BF16, 3, 128)?);
    let mut narrow = tensor(DType::BF16, 3, 64)?;
    let mut layer = |dtype| -> KernelResult<_> {
        let (k, v) = (tensor(dtype, scene.num_slots(), 64)?, tensor(dtype, scene.num_slots(), 64)?);
        Ok(KvLayer { k, v, page_size: 16 })
    };
    let (kv, half_kv) = (layer(DType::BF16)?, layer(DType::F16)?);
    let mut call = |out, kv| backend.attention(out, &qkv, kv, &inputs, &state, &plan, &spec);
    expect_err("out too narrow", call(&mut narrow, &kv))?;
    expect_err("keys of another dtype", call(&mut out, &half_kv))
}

/// A step's inputs for a benchmark, its state, and the slots that its pages take.
pub(super) fn bench_step<B: Backend>(
    backend: &mut B,
    w: &Workload,
    vocab: usize,
) -> KernelResult<(B::Inputs, SeqState<B::Buf>, usize)> {
    let seq = |kv_len| SeqShape { q_len: w.q_len, past: kv_len - w.q_len };
    let seqs: Vec<_> = w.kv_lens().into_iter().map(seq).collect();
    let scene = Scene::new(&mut Rng::new(7), &seqs, w.page_size, 0, vocab);
    let mut state = backend.seq_state(scene.max_rows, scene.max_pages, vocab)?;
    let mut inputs = backend.inputs(w.tokens(), w.seqs, w.seqs)?;
    backend.begin_step(&mut inputs, &scene.inputs, &mut state, &mut [])?;
    Ok((inputs, state, scene.num_slots()))
}

/// The KV storage of so many layers that caches have forgotten a layer of `kv_bytes` when it is met again.
pub(super) fn bench_layers<B: Backend>(
    backend: &mut B,
    w: &Workload,
    num_slots: usize,
    kv_bytes: f64,
) -> KernelResult<Rotation<KvLayer<B::Buf>>> {
    let cols = w.attn_spec().kv_cols();
    Rotation::new(w.copies(kv_bytes), |_| {
        let k = noise(backend, w.dtype, num_slots, cols)?;
        let v = noise(backend, w.dtype, num_slots, cols)?;
        Ok(KvLayer { k, v, page_size: w.page_size })
    })
}

fn bench<B: Backend>(w: &Workload) -> Vec<BenchCase<B>> {
    let (w, spec) = (*w, w.attn_spec());
    let kv_lens = w.kv_lens();
    let kv_bytes = w.bytes_of(2 * kv_lens.iter().sum::<usize>() * spec.kv_cols());
    let bytes = kv_bytes + w.bytes_of(2 * w.tokens() * spec.q_cols());
    // Query i of q_len sees kv_len - q_len + i + 1 positions; two multiply-adds an element.
    let visible = |kv_len: usize| w.q_len * (kv_len - w.q_len) + w.q_len * (w.q_len + 1) / 2;
    let flops = 4.0 * (kv_lens.into_iter().map(visible).sum::<usize>() * spec.q_cols()) as f64;
    vec![BenchCase::new("causal", bytes, flops, move |backend: &mut B| {
        let (inputs, state, num_slots) = bench_step(backend, &w, w.model.vocab)?;
        let mut plan = backend.attn_plan(&spec, w.tokens(), w.seqs)?;
        backend.plan_attention(&mut plan, &inputs, &spec)?;
        let qkv = noise(backend, w.dtype, w.tokens(), spec.qkv_cols())?;
        let mut out = backend.tensor("out", w.dtype, w.tokens(), spec.q_cols())?;
        let mut layers = bench_layers(backend, &w, num_slots, kv_bytes)?;
        Ok(move |backend: &mut B| {
            backend.attention(&mut out, &qkv, layers.turn(), &inputs, &state, &plan, &spec)
        })
    })]
}
