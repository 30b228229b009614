//! The steps that are measured.

use minisgl_kernels::DType;
use minisgl_tests::ops::bench::{LLAMA_3_1_8B, LLAMA_3_2_1B, ModelShape, QWEN3_0_6B, Workload};

use crate::args::Args;

/// What to measure: given on the command line, or what suits the device.
#[derive(Clone, Debug)]
pub(crate) struct Shapes {
    pub(crate) models: Vec<ModelShape>,
    pub(crate) decode_batches: Vec<usize>,
    pub(crate) prefill: Vec<(usize, usize)>,
    /// Whether attention is measured at more shapes than the models' steps have.
    pub(crate) attention: bool,
}

impl Shapes {
    /// A CPU is measured at what it is used for: small batches and short prompts of small models.
    pub(crate) fn new(args: &Args, is_gpu: bool) -> Self {
        let default = if is_gpu {
            Self {
                models: vec![QWEN3_0_6B, LLAMA_3_2_1B, LLAMA_3_1_8B],
                decode_batches: vec![1, 8, 32, 64, 256],
                prefill: vec![(8, 1024), (2, 4096)],
                attention: true,
            }
        } else {
            Self {
                models: vec![QWEN3_0_6B, LLAMA_3_2_1B],
                decode_batches: vec![1, 8],
                prefill: vec![(1, 512)],
                attention: false,
            }
        };
        Self {
            models: args.models.clone().unwrap_or(default.models),
            decode_batches: args.decode_batches.clone().unwrap_or(default.decode_batches),
            prefill: args.prefill.clone().unwrap_or(default.prefill),
            attention: args.attention.unwrap_or(default.attention),
        }
    }
}

/// The steps of one model, for every op.
pub(crate) fn steps(model: ModelShape, shapes: &Shapes, args: &Args, logits_dtype: DType) -> Vec<Workload> {
    let base = base(model, args, logits_dtype);
    let decode = shapes.decode_batches.iter().map(|&seqs| Workload { seqs, ..base });
    let prompts = shapes.prefill.iter().filter(|&&(seqs, len)| seqs * len > 0);
    let prefill = prompts.map(|&(seqs, len)| Workload { q_len: len, ..base.with(seqs, len) });
    decode.chain(prefill).collect()
}

/// Steps for attention alone: ragged batches, long contexts, every group size, small and large pages, long prompts,
/// a chunk behind a long past.
pub(crate) fn attention(args: &Args, logits_dtype: DType) -> Vec<Workload> {
    let of_models = [QWEN3_0_6B, LLAMA_3_2_1B, LLAMA_3_1_8B].map(|model| base(model, args, logits_dtype));
    let mut all = Vec::new();
    for base in of_models {
        let uniform = base.with(256, 1024);
        all.extend([1, 256].map(|page_size| Workload { page_size, ..uniform }));
        all.extend([32, 64, 128, 256].map(|seqs| Workload { min_kv_len: 100, ..base.with(seqs, 1500) }));
        all.extend([1, 16, 256].map(|page_size| Workload {
            min_kv_len: 100,
            page_size,
            ..base.with(128, 1500)
        }));
        all.extend([1, 2, 4, 8].map(|seqs| base.with(seqs, 65_536)));
        all.push(Workload { q_len: 1024, ..base.with(16, 1024) });
        all.push(Workload { q_len: 8192, ..base.with(1, 8192) });
        all.push(Workload { q_len: 512, ..base.with(8, 4608) });
    }
    for name in GROUPS {
        all.push(base(grouped(name), args, logits_dtype).with(256, 1024));
    }
    all
}

/// Query heads for each of eight key and value heads, and elements of a head.
const GROUPS: [(&str, usize, usize); 10] = [
    ("group 1, d64", 1, 64),
    ("group 2, d64", 2, 64),
    ("group 3, d64", 3, 64),
    ("group 4, d64", 4, 64),
    ("group 8, d64", 8, 64),
    ("group 1, d128", 1, 128),
    ("group 2, d128", 2, 128),
    ("group 4, d128", 4, 128),
    ("group 7, d128", 7, 128),
    ("group 8, d128", 8, 128),
];

fn grouped((name, group, head_dim): (&'static str, usize, usize)) -> ModelShape {
    ModelShape { name, heads: 8 * group, kv_heads: 8, head_dim, ..LLAMA_3_1_8B }
}

/// A decode step of one sequence.
fn base(model: ModelShape, args: &Args, logits_dtype: DType) -> Workload {
    Workload {
        model,
        dtype: args.dtype,
        logits_dtype,
        seqs: 1,
        q_len: 1,
        min_kv_len: args.context,
        kv_len: args.context,
        page_size: args.page_size,
        cold_bytes: args.cold_mib << 20,
    }
}
