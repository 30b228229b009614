//! Paged attention: csrc/attention/. A step is planned once on the device, inside of a graph where there is one,
//! and every layer's kernels read the plan.

mod tuning;

use std::cell::Cell;

use super::bindings::{
    msgl_attention_clusters, msgl_attention_ctas_per_sm, msgl_attention_decode, msgl_attention_heads_per_job,
    msgl_attention_kernel, msgl_attention_params, msgl_attention_plain, msgl_attention_plan,
    msgl_attention_plan_bytes, msgl_attention_plan_params, msgl_attention_prefill, msgl_attention_sizes,
    msgl_attention_tile_rows, msgl_dtype, msgl_has_rope_attention,
};
use super::memory::DeviceBuf;
use super::options::AttnKernel;
use super::{Cuda, CudaInputs, check};
use crate::{AttnSpec, DType, KernelError, KvLayer, Result, SeqState, Tensor};
use tuning::{Families, Offer};

const OP: &str = "attention";
/// The largest head of the plain kernel.
const MAX_HEAD_DIM: usize = 512;
/// Query rows of a decode job: `kJobRows` in csrc/attention/plan.cuh.
const JOB_ROWS: usize = 8;

/// The work lists of a step and the scratch of its kernels.
///
/// How a sequence's KV is split among CTAs depends on the whole batch, and with it the last bits of the result;
/// equal batches give equal bits.
pub struct AttnPlan {
    spec: AttnSpec,
    /// None where only the plain kernel, which needs no plan, has the head size.
    families: Option<Families>,
    /// What runs prefill for the families.
    prefill: msgl_attention_kernel,
    sizes: msgl_attention_sizes,
    /// Clusters of each of [`tuning::CLUSTER_CTAS`] that the device holds at once; zeros where decode has none.
    clusters: [u32; 4],
    /// Whether there is a decode kernel that rotates and stores.
    has_rope: bool,
    /// `msgl_attention_plan_bytes(sizes)` bytes, zeros at first: decode counts on finding none but its own partial results.
    buf: DeviceBuf,
    /// Whether the step that was planned last still lacks its plan: the kernel for short contexts reads none, and making
    /// one takes as long as attention does in two layers of such a step.
    is_due: Cell<bool>,
}

fn abi(kernel: AttnKernel) -> msgl_attention_kernel {
    match kernel {
        AttnKernel::Trtllm => msgl_attention_kernel::MSGL_ATTENTION_TRTLLM,
        AttnKernel::Fi => msgl_attention_kernel::MSGL_ATTENTION_FI,
        AttnKernel::Fa | AttnKernel::Auto => msgl_attention_kernel::MSGL_ATTENTION_FA,
    }
}

fn check_spec(spec: &AttnSpec) -> Result<()> {
    let unsupported = |what: String, supported: &str| {
        Err(KernelError::Unsupported { op: OP, what, supported: supported.into() })
    };
    if spec.num_kv_heads == 0 || spec.num_heads == 0 || !spec.num_heads.is_multiple_of(spec.num_kv_heads) {
        let what = format!("num_heads {} with num_kv_heads {}", spec.num_heads, spec.num_kv_heads);
        return unsupported(what, "num_heads is a multiple of num_kv_heads, both above 0");
    }
    if spec.head_dim == 0 || !spec.head_dim.is_multiple_of(2) || spec.head_dim > MAX_HEAD_DIM {
        return unsupported(format!("head_dim {}", spec.head_dim), "even sizes up to 512");
    }
    if !spec.page_size.is_power_of_two() || spec.page_size > 256 {
        return unsupported(format!("page_size {}", spec.page_size), "powers of two from 1 to 256");
    }
    if spec.window == Some(0) {
        return unsupported("window 0".into(), "windows of at least 1, the query's own position");
    }
    check::u32_of(OP, "num_heads * head_dim", spec.qkv_cols())?;
    Ok(())
}

/// See [`Backend::attn_plan`](crate::Backend::attn_plan).
pub(crate) fn new_plan(cuda: &Cuda, spec: &AttnSpec, max_tokens: usize, max_seqs: usize) -> Result<AttnPlan> {
    check_spec(spec)?;
    let (sm, head_dim) = (cuda.device.sm, spec.head_dim as u32);
    // Both 16-bit dtypes have the same instances; f32 always goes to the plain kernel.
    let dtype = msgl_dtype::MSGL_BF16;
    // SAFETY: any arguments will do; what it asks the runtime is about the current device, which is this one.
    let tile_rows = |kernel| unsafe { msgl_attention_tile_rows(kernel, dtype, head_dim, sm) };
    let has_mma = tile_rows(msgl_attention_kernel::MSGL_ATTENTION_FA) != 0;
    let offer = Offer { has_mma, sm, head_dim: spec.head_dim, page_size: spec.page_size };
    let families = tuning::choose(cuda.options.prefill, cuda.options.decode, &offer)?;
    // Where a family takes everything, the other half of the plan is never used but has to have some shape.
    let of_prefill = families.map_or(AttnKernel::Fa, |f| f.prefill);
    let prefill = abi(if of_prefill == AttnKernel::Fi { AttnKernel::Fa } else { of_prefill });
    let (prefill, tile_rows) = match tile_rows(msgl_attention_kernel::MSGL_ATTENTION_WGMMA) {
        0 => (prefill, tile_rows(prefill).max(1)),
        rows => (msgl_attention_kernel::MSGL_ATTENTION_WGMMA, rows),
    };
    let of_decode = families.map_or(AttnKernel::Fi, |f| f.decode);
    let decode = if of_decode == AttnKernel::Fa { AttnKernel::Fi } else { of_decode };
    let num_kv_heads = spec.num_kv_heads as u32;
    // SAFETY: pure functions of their arguments.
    let (ctas_per_sm, heads_per_job) = unsafe {
        (
            msgl_attention_ctas_per_sm(abi(decode), dtype, head_dim, num_kv_heads, sm),
            msgl_attention_heads_per_job(abi(decode), head_dim, num_kv_heads),
        )
    };
    let group = spec.num_heads / spec.num_kv_heads;
    let max_tiles = tuning::num_tiles(max_tokens, max_seqs, group, tile_rows as usize, 0);
    let sizes = msgl_attention_sizes {
        num_heads: spec.num_heads as u32,
        num_kv_heads,
        head_dim,
        window: spec.window.unwrap_or(0),
        max_seqs: check::u32_of(OP, "max_seqs", max_seqs)?,
        max_tiles: if has_mma { check::u32_of(OP, "max_tokens", max_tiles)? } else { 0 },
        tile_rows,
        decode_rows: u32::MAX,
        decode_ctas: cuda.device.num_sms * ctas_per_sm,
        heads_per_job: heads_per_job.max(1),
        grid_ctas: cuda.device.num_sms * ctas_per_sm,
        cluster_ctas: 0,
    };
    let (mut clusters, mut has_rope) = ([0; 4], false);
    if decode == AttnKernel::Fi && sm >= 90 {
        // SAFETY: any arguments will do; what they ask the runtime is about the current device, which is this one.
        unsafe {
            has_rope = msgl_has_rope_attention(dtype, head_dim, sm) != 0;
            clusters = tuning::CLUSTER_CTAS.map(|ctas| msgl_attention_clusters(head_dim, sm, ctas));
        }
    }
    // SAFETY: reads `sizes` and returns a number.
    let size_bytes = unsafe { msgl_attention_plan_bytes(&sizes) };
    let buf = DeviceBuf::zeroed(&cuda.device, &cuda.stream, "attention plan", size_bytes)?;
    Ok(AttnPlan { spec: *spec, families, prefill, sizes, clusters, has_rope, buf, is_due: Cell::new(false) })
}

impl AttnPlan {
    /// The sizes for a step, or the error that the plan was made for something else.
    fn sizes_for(
        &self,
        cuda: &Cuda,
        families: &Families,
        inputs: &CudaInputs,
    ) -> Result<msgl_attention_sizes> {
        let (num_tokens, num_seqs) = (inputs.layout.num_tokens, inputs.layout.num_seqs);
        check::below(OP, "num_seqs", num_seqs, self.sizes.max_seqs as usize + 1)?;
        let decode_rows = tuning::decode_rows(families, num_tokens, num_seqs);
        check::below(OP, "tiles", self.num_tiles(inputs, decode_rows), self.sizes.max_tiles as usize + 1)?;
        let rows = tuning::max_decode_rows(decode_rows, num_tokens, num_seqs, self.group());
        let num_jobs = num_seqs * self.groups_of_kv_heads() * rows.div_ceil(JOB_ROWS);
        let num_jobs = num_jobs.max(1);
        let max_kv_len = cuda.lengths.expected(inputs.extent.max_kv_len);
        let rotates = self.has_rope && num_tokens <= num_seqs;
        let (cluster_ctas, grid_ctas) =
            tuning::decode_grid(&self.clusters, num_jobs, max_kv_len, self.sizes.decode_ctas, rotates);
        cuda.lengths.limit_to(tuning::max_cluster_kv_len(cluster_ctas, rotates));
        Ok(msgl_attention_sizes { decode_rows, grid_ctas, cluster_ctas, ..self.sizes })
    }

    /// Whether the kernel that rotates, for short contexts, takes a step of these sizes. It reads no plan.
    fn rotates(&self, sizes: &msgl_attention_sizes, inputs: &CudaInputs) -> bool {
        let has_one_token_each = inputs.extent.max_q_len <= 1;
        self.has_rope && has_one_token_each && sizes.decode_rows == u32::MAX && sizes.cluster_ctas > 1
    }

    /// Makes the plan of the step where that is still due.
    fn make(&self, cuda: &Cuda, sizes: &msgl_attention_sizes, inputs: &CudaInputs) -> Result<()> {
        if !self.is_due.replace(false) {
            return Ok(());
        }
        let params = msgl_attention_plan_params {
            cu_q_lens: inputs.cu_q_lens(),
            kv_lens: inputs.kv_lens(),
            seq_rows: inputs.seq_rows(),
            plan: self.buf.as_ptr(),
            sizes: *sizes,
            num_seqs: inputs.layout.num_seqs as u32,
        };
        // SAFETY: the plan has room for the sequences and tiles of these sizes, which `sizes_for` has checked;
        // begin_step has checked that q_len <= kv_len and that cu_q_lens rises.
        unsafe { cuda.launch("plan_attention", &params, msgl_attention_plan) }
    }

    /// KV heads, in groups that a decode job reads together.
    fn groups_of_kv_heads(&self) -> usize {
        self.spec.num_kv_heads.div_ceil(self.sizes.heads_per_job as usize)
    }

    /// Query heads of a KV head.
    fn group(&self) -> usize {
        self.spec.num_heads / self.spec.num_kv_heads
    }

    fn num_tiles(&self, inputs: &CudaInputs, decode_rows: u32) -> usize {
        let (num_tokens, num_seqs) = (inputs.layout.num_tokens, inputs.layout.num_seqs);
        tuning::num_tiles(num_tokens, num_seqs, self.group(), self.sizes.tile_rows as usize, decode_rows)
    }

    fn check_spec(&self, spec: &AttnSpec) -> Result<()> {
        if *spec == self.spec {
            return Ok(());
        }
        Err(KernelError::Unsupported {
            op: OP,
            what: format!("{spec:?}"),
            supported: format!("what the plan was made for: {:?}", self.spec),
        })
    }
}

/// See [`Backend::plan_attention`](crate::Backend::plan_attention).
pub(crate) fn plan(cuda: &Cuda, plan: &mut AttnPlan, inputs: &CudaInputs, spec: &AttnSpec) -> Result<()> {
    plan.check_spec(spec)?;
    let Some(families) = plan.families else { return Ok(()) };
    let sizes = plan.sizes_for(cuda, &families, inputs)?;
    plan.is_due.set(true);
    if plan.rotates(&sizes, inputs) {
        return Ok(());
    }
    plan.make(cuda, &sizes, inputs)
}

/// See [`Backend::attention`](crate::Backend::attention).
pub(crate) fn attention(
    cuda: &Cuda,
    out: &mut Tensor<DeviceBuf>,
    qkv: &Tensor<DeviceBuf>,
    kv: &KvLayer<DeviceBuf>,
    inputs: &CudaInputs,
    state: &SeqState<DeviceBuf>,
    plan: &AttnPlan,
    spec: &AttnSpec,
) -> Result<()> {
    let params = params(out, qkv, kv, inputs, state, plan, spec)?;
    launch(cuda, params, qkv.dtype, inputs, plan)
}

/// Runs what the arguments that were checked ask for.
pub(super) fn launch(
    cuda: &Cuda,
    params: msgl_attention_params,
    dtype: DType,
    inputs: &CudaInputs,
    plan: &AttnPlan,
) -> Result<()> {
    if params.num_tokens == 0 || params.num_slots == 0 {
        return Ok(());
    }
    let named = [cuda.options.prefill, cuda.options.decode];
    if dtype == DType::F32 && named.contains(&AttnKernel::Trtllm) {
        return Err(KernelError::Unsupported {
            op: OP,
            what: "trtllm in f32".into(),
            supported: "trtllm runs in bf16 and f16; fa, fi and auto run in f32 too".into(),
        });
    }
    let families = match plan.families {
        Some(families) if dtype != DType::F32 => families,
        _ => {
            let kernel = msgl_attention_kernel::MSGL_ATTENTION_PLAIN;
            let params = msgl_attention_params { kernel, ..params };
            // SAFETY: qkv, out and KV have the shapes that the params say; begin_step has checked rows, lengths
            // and pages against the state and the KV, and the kernel limits slots to `num_slots`.
            return unsafe { cuda.launch(OP, &params, msgl_attention_plain) };
        }
    };
    let sizes = plan.sizes_for(cuda, &families, inputs)?;
    plan.make(cuda, &sizes, inputs)?;
    let num_tiles = plan.num_tiles(inputs, sizes.decode_rows) as u32;
    if num_tiles != 0 {
        let params = msgl_attention_params { sizes, num_tiles, kernel: plan.prefill, ..params };
        // SAFETY: as above, and the plan was made with the same sizes.
        unsafe { cuda.launch(OP, &params, msgl_attention_prefill)? };
    }
    // A recorded step is replayed for other lengths.
    let shortest_rows = inputs.extent.min_q_len * plan.group();
    let has_decode = cuda.is_capturing || shortest_rows <= sizes.decode_rows as usize;
    if sizes.decode_rows != 0 && has_decode {
        let params = msgl_attention_params { sizes, kernel: abi(families.decode), ..params };
        // SAFETY: as above; the plan has the scratch of `decode_ctas` CTAs.
        unsafe { cuda.launch(OP, &params, msgl_attention_decode)? };
    }
    Ok(())
}

/// Checks the arguments and fills in what the kernels take, but for the kernel and its share of the plan.
pub(super) fn params(
    out: &mut Tensor<DeviceBuf>,
    qkv: &Tensor<DeviceBuf>,
    kv: &KvLayer<DeviceBuf>,
    inputs: &CudaInputs,
    state: &SeqState<DeviceBuf>,
    plan: &AttnPlan,
    spec: &AttnSpec,
) -> Result<msgl_attention_params> {
    let (num_tokens, num_seqs, dtype) = (inputs.layout.num_tokens, inputs.layout.num_seqs, qkv.dtype);
    plan.check_spec(spec)?;
    check::tensor(OP, "qkv", qkv, num_tokens, spec.qkv_cols(), dtype)?;
    check::tensor(OP, "out", out, num_tokens, spec.q_cols(), dtype)?;
    check::tensor(OP, "kv.k", &kv.k, inputs.extent.slots, spec.kv_cols(), dtype)?;
    check::tensor(OP, "kv.v", &kv.v, inputs.extent.slots, spec.kv_cols(), dtype)?;
    check::same(OP, "kv.page_size", kv.page_size, spec.page_size)?;
    check::below(OP, "kv_len", inputs.extent.max_kv_len, state.max_pages * spec.page_size + 1)?;
    let num_slots = kv.k.rows.min(kv.v.rows);
    check::u32_of(OP, "kv.rows", num_slots)?;
    Ok(msgl_attention_params {
        out: out.buf.as_ptr(),
        qkv: qkv.buf.as_ptr(),
        k: kv.k.buf.as_ptr(),
        v: kv.v.buf.as_ptr(),
        page_table: state.page_table.as_ptr(),
        cu_q_lens: inputs.cu_q_lens(),
        kv_lens: inputs.kv_lens(),
        seq_rows: inputs.seq_rows(),
        plan: plan.buf.as_ptr(),
        qkv_stride: qkv.cols as i64,
        num_slots: num_slots as u64,
        sizes: plan.sizes,
        num_tokens: num_tokens as u32,
        num_seqs: num_seqs as u32,
        num_tiles: 0,
        reads_early: 0,
        page_size: spec.page_size as u32,
        max_pages: state.max_pages as u32,
        scale: spec.scale,
        dtype: check::abi(dtype),
        kernel: msgl_attention_kernel::MSGL_ATTENTION_PLAIN,
    })
}

/// What the decode kernel that rotates takes, of arguments that were checked, or none where this step or plan has no such
/// kernel.
pub(super) fn rope_params(
    cuda: &Cuda,
    params: &msgl_attention_params,
    dtype: DType,
    inputs: &CudaInputs,
    plan: &AttnPlan,
) -> Result<Option<msgl_attention_params>> {
    match plan.families {
        Some(families) if dtype != DType::F32 && params.num_slots != 0 && params.num_tokens != 0 => {
            let sizes = plan.sizes_for(cuda, &families, inputs)?;
            let kernel = abi(families.decode);
            Ok(plan.rotates(&sizes, inputs).then_some(msgl_attention_params { sizes, kernel, ..*params }))
        }
        _ => Ok(None),
    }
}
