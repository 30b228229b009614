use std::time::Duration;

use crate::{DType, Result, StepInputs, Tensor};

/// Most log probabilities that one sampled token can be reported with.
pub const MAX_LOGPROBS: usize = 20;

/// Everything a decoder step asks of a device.
///
/// Ops are asynchronous where the device is: they enqueue and return, in one order. Only [`read`](Self::read),
/// [`wait`](Self::wait) and [`synchronize`](Self::synchronize) wait. Ops check shapes, dtypes and capacities and
/// report what does not fit. Tensors are row-major, `rows` is the number of rows in use, and nothing beyond it
/// is read or written. No two tensors of one call share memory. Arithmetic is in f32 or better whatever the
/// storage dtype, reductions have a fixed order, and the result for a row does not depend on the other rows.
pub trait Backend: Sized + Send + 'static {
    /// Untyped memory on the device, freed on drop.
    type Buf: Send;
    /// A step's inputs on the device.
    type Inputs: Send;
    /// What [`plan_attention`](Self::plan_attention) computes once a step and every layer reads.
    type AttnPlan: Send;
    /// A recorded sequence of ops over fixed memory.
    type Graph: Send;
    /// Sampled tokens on their way to the host.
    type ReadBack: Send;

    /// Device name for people, as in `cpu (AVX-512, 8 threads)` or `cuda:0 (NVIDIA H100 80GB HBM3)`.
    fn device_name(&self) -> String;
    /// Device memory now.
    fn memory(&self) -> Memory;
    /// The dtype in which `linear` should write logits for weights of `dtype`.
    fn logits_dtype(&self, dtype: DType) -> DType;
    /// Whether [`capture`](Self::capture) works.
    fn has_graphs(&self) -> bool;

    // Memory.

    /// Allocates `size_bytes` bytes of zeros; `what` names them in an out-of-memory error.
    fn alloc(&mut self, what: &'static str, size_bytes: usize) -> Result<Self::Buf>;
    /// Copies `src` to `dst` at `offset_bytes`, ordered with the ops around it.
    fn write(&mut self, dst: &mut Self::Buf, offset_bytes: usize, src: &[u8]) -> Result<()>;
    /// Waits for every op before, then copies from `src` at `offset_bytes` to fill `dst`.
    fn read(&mut self, src: &Self::Buf, offset_bytes: usize, dst: &mut [u8]) -> Result<()>;
    /// Fills rows of `dst` from `first_row` on with little-endian `src_dtype` data of whole rows, converting
    /// with round-to-nearest-even. The source may be reused when it returns.
    fn load_rows(
        &mut self,
        dst: &mut Tensor<Self::Buf>,
        first_row: usize,
        src: &[u8],
        src_dtype: DType,
    ) -> Result<()>;
    /// Fills `dst` with reproducible noise, uniform with mean `mean` and standard deviation `std`.
    fn fill_random(&mut self, dst: &mut Tensor<Self::Buf>, mean: f32, std: f32, seed: u64) -> Result<()>;

    /// Allocates a tensor of zeros.
    fn tensor(
        &mut self,
        what: &'static str,
        dtype: DType,
        rows: usize,
        cols: usize,
    ) -> Result<Tensor<Self::Buf>> {
        let buf = self.alloc(what, rows * cols * dtype.size_bytes())?;
        Ok(Tensor { buf, dtype, rows, cols })
    }

    // The step.

    /// Room for steps of up to `max_tokens` tokens, `max_seqs` sequences and `max_samples` samples.
    fn inputs(&mut self, max_tokens: usize, max_seqs: usize, max_samples: usize) -> Result<Self::Inputs>;
    /// Uploads a step's inputs in one copy, then applies page-table updates and count resets to `state` and page
    /// copies to `kv`. `src` may be reused when it returns.
    fn begin_step(
        &mut self,
        dst: &mut Self::Inputs,
        src: &StepInputs,
        state: &mut SeqState<Self::Buf>,
        kv: &mut [KvLayer<Self::Buf>],
    ) -> Result<()>;
    /// Room for attention plans of up to `max_seqs` sequences and `max_tokens` query tokens.
    fn attn_plan(&mut self, spec: &AttnSpec, max_tokens: usize, max_seqs: usize) -> Result<Self::AttnPlan>;
    /// Computes what the layers' attention calls share.
    fn plan_attention(
        &mut self,
        plan: &mut Self::AttnPlan,
        inputs: &Self::Inputs,
        spec: &AttnSpec,
    ) -> Result<()>;

    // Ops.

    /// `out[t] = table[token_ids[t]]`, with device tokens resolved through `state.last_tokens`.
    fn embedding(
        &mut self,
        out: &mut Tensor<Self::Buf>,
        table: &Tensor<Self::Buf>,
        inputs: &Self::Inputs,
        state: &SeqState<Self::Buf>,
    ) -> Result<()>;
    /// `out = x / sqrt(mean(x^2) + eps) * weight`, row by row (Zhang, Sennrich 2019). `x` is not changed.
    fn rms_norm(
        &mut self,
        out: &mut Tensor<Self::Buf>,
        x: &Tensor<Self::Buf>,
        weight: &Tensor<Self::Buf>,
        eps: f32,
        rows: usize,
    ) -> Result<()>;
    /// `residual += x`, rounded to its dtype, then `out = rms_norm(residual)`.
    fn add_rms_norm(
        &mut self,
        out: &mut Tensor<Self::Buf>,
        residual: &mut Tensor<Self::Buf>,
        x: &Tensor<Self::Buf>,
        weight: &Tensor<Self::Buf>,
        eps: f32,
        rows: usize,
    ) -> Result<()>;
    /// `residual += x`, rounded to its dtype.
    fn add(&mut self, residual: &mut Tensor<Self::Buf>, x: &Tensor<Self::Buf>, rows: usize) -> Result<()>;
    /// `out[r][n] = sum_k x[r][k] * weight[n][k] + bias[n]`; `out` has the dtype of `x`, or f32.
    fn linear(
        &mut self,
        out: &mut Tensor<Self::Buf>,
        x: &Tensor<Self::Buf>,
        weight: &Tensor<Self::Buf>,
        bias: Option<&Tensor<Self::Buf>>,
        rows: usize,
    ) -> Result<()>;
    /// `out = linear(rms_norm(x))`: a projection of the normalised residual stream. `normed` is `[rows, x.cols]`
    /// of the dtype of `x`, and unspecified afterwards.
    ///
    /// This and the two ops below are other ops in a row; a backend may compute each in one pass, and need not
    /// round what lies between.
    fn norm_linear(
        &mut self,
        out: &mut Tensor<Self::Buf>,
        normed: &mut Tensor<Self::Buf>,
        x: &Tensor<Self::Buf>,
        norm: &Tensor<Self::Buf>,
        eps: f32,
        weight: &Tensor<Self::Buf>,
        bias: Option<&Tensor<Self::Buf>>,
        rows: usize,
    ) -> Result<()> {
        self.rms_norm(normed, x, norm, eps, rows)?;
        self.linear(out, normed, weight, bias, rows)
    }
    /// `residual += linear(x)`: the end of a block. `delta` is `[rows, residual.cols]` of its dtype, and
    /// unspecified afterwards.
    fn linear_add(
        &mut self,
        residual: &mut Tensor<Self::Buf>,
        delta: &mut Tensor<Self::Buf>,
        x: &Tensor<Self::Buf>,
        weight: &Tensor<Self::Buf>,
        bias: Option<&Tensor<Self::Buf>>,
        rows: usize,
    ) -> Result<()> {
        self.linear(delta, x, weight, bias, rows)?;
        self.add(residual, delta, rows)
    }
    /// `out = act_mul(linear(rms_norm(x)))`: the first half of a gated feed-forward layer (Shazeer 2020). `normed`
    /// is `[rows, x.cols]` and `gate_up` `[rows, 2 * out.cols]`, both of the dtype of `x`; both are unspecified
    /// afterwards.
    fn norm_gated_linear(
        &mut self,
        out: &mut Tensor<Self::Buf>,
        normed: &mut Tensor<Self::Buf>,
        gate_up: &mut Tensor<Self::Buf>,
        x: &Tensor<Self::Buf>,
        norm: &Tensor<Self::Buf>,
        eps: f32,
        weight: &Tensor<Self::Buf>,
        bias: Option<&Tensor<Self::Buf>>,
        activation: Activation,
        rows: usize,
    ) -> Result<()> {
        self.norm_linear(gate_up, normed, x, norm, eps, weight, bias, rows)?;
        self.act_mul(out, gate_up, activation, rows)
    }
    /// For each token: RMSNorm of each query head with `q_norm` and each key head with `k_norm` where given,
    /// rotary embedding of both, then store of key and value at the token's slot. `qkv` is
    /// `[tokens, (num_heads + 2 * num_kv_heads) * head_dim]` and gets the new queries in place (its key and
    /// value columns are unspecified afterwards). `rope` is `[max_position, head_dim]` f32: the cosines of the
    /// `head_dim / 2` angles, then the sines; element `i` is rotated with element `i + head_dim / 2` (Su et al.
    /// 2021, in the half-split form of GPT-NeoX).
    fn rope_store_kv(
        &mut self,
        qkv: &mut Tensor<Self::Buf>,
        q_norm: Option<&Tensor<Self::Buf>>,
        k_norm: Option<&Tensor<Self::Buf>>,
        eps: f32,
        rope: &Tensor<Self::Buf>,
        inputs: &Self::Inputs,
        spec: &AttnSpec,
        kv: &mut KvLayer<Self::Buf>,
    ) -> Result<()>;
    /// Causal attention of the packed queries over the paged KV: query `i` of a sequence with `q_len` queries
    /// sees positions `j <= kv_len - q_len + i`, and with a window `w` only the last `w` of them.
    /// `out` is `[tokens, num_heads * head_dim]`; rows of padding tokens are unspecified.
    fn attention(
        &mut self,
        out: &mut Tensor<Self::Buf>,
        qkv: &Tensor<Self::Buf>,
        kv: &KvLayer<Self::Buf>,
        inputs: &Self::Inputs,
        state: &SeqState<Self::Buf>,
        plan: &Self::AttnPlan,
        spec: &AttnSpec,
    ) -> Result<()>;
    /// `rope_store_kv`, then `attention`, of one layer. `qkv` is unspecified afterwards.
    ///
    /// In one pass a backend may round what lies between otherwise than both ops alone, but for what is stored in `kv`.
    /// A graph of a step with one token a sequence is replayed for such steps only, and no other op of a graph writes
    /// `kv`: what earlier steps stored there may be read before the op that comes first has ended.
    fn rope_attention(
        &mut self,
        out: &mut Tensor<Self::Buf>,
        qkv: &mut Tensor<Self::Buf>,
        q_norm: Option<&Tensor<Self::Buf>>,
        k_norm: Option<&Tensor<Self::Buf>>,
        eps: f32,
        rope: &Tensor<Self::Buf>,
        kv: &mut KvLayer<Self::Buf>,
        inputs: &Self::Inputs,
        state: &SeqState<Self::Buf>,
        plan: &Self::AttnPlan,
        spec: &AttnSpec,
    ) -> Result<()> {
        self.rope_store_kv(qkv, q_norm, k_norm, eps, rope, inputs, spec, kv)?;
        self.attention(out, qkv, kv, inputs, state, plan, spec)
    }
    /// `out[r][i] = act(gate_up[r][i]) * gate_up[r][ffn + i]` with `gate_up` of `2 * ffn` columns.
    fn act_mul(
        &mut self,
        out: &mut Tensor<Self::Buf>,
        gate_up: &Tensor<Self::Buf>,
        activation: Activation,
        rows: usize,
    ) -> Result<()>;
    /// `out[s] = x[sample_tokens[s]]`.
    fn gather_samples(
        &mut self,
        out: &mut Tensor<Self::Buf>,
        x: &Tensor<Self::Buf>,
        inputs: &Self::Inputs,
    ) -> Result<()>;
    /// Draws one token a sample from `logits` (`[samples, vocab]`) as [`crate::SampleParams`] says, writes it to
    /// `out` and to `state.last_tokens`, and counts it in `state.token_counts` where the sample has penalties.
    /// A NaN logit counts as minus infinity; a row without a finite logit gives token `u32::MAX`.
    /// Log probabilities are those of the model: `log_softmax(logits)` before penalties and temperature.
    fn sample(
        &mut self,
        out: &mut SampleBuf<Self::Buf>,
        logits: &Tensor<Self::Buf>,
        inputs: &Self::Inputs,
        state: &mut SeqState<Self::Buf>,
    ) -> Result<()>;

    // Results, graphs, time.

    /// Starts copying `num_samples` sampled tokens (and their log probabilities) to the host.
    fn read_back(
        &mut self,
        out: &SampleBuf<Self::Buf>,
        num_samples: usize,
        logprobs: bool,
    ) -> Result<Self::ReadBack>;
    /// Waits for a read-back.
    fn wait(&mut self, read_back: Self::ReadBack) -> Result<Samples>;
    /// Runs `body`, in which the device may measure which of its kernels computes an op the fastest, taking time and
    /// memory for it. What it finds holds for ops of the same sizes from then on. Elsewhere nothing is measured. `body`
    /// is best a whole step; it may be called more than once, and be recorded, as by [`capture`](Self::capture).
    fn tune(&mut self, body: &mut dyn FnMut(&mut Self) -> Result<()>) -> Result<()> {
        body(self)
    }
    /// Records the ops that `body` calls instead of running them. `body` must not allocate, write or read, and may be
    /// called more than once.
    fn capture(&mut self, body: &mut dyn FnMut(&mut Self) -> Result<()>) -> Result<Self::Graph>;
    /// Runs recorded ops.
    fn replay(&mut self, graph: &Self::Graph) -> Result<()>;
    /// Waits for everything enqueued; reports an error that an op left behind.
    fn synchronize(&mut self) -> Result<()>;
    /// Device time of what `body` enqueues, between two events around it.
    fn elapsed(&mut self, body: &mut dyn FnMut(&mut Self) -> Result<()>) -> Result<Duration>;

    // Composed state.

    /// State for `max_rows` sequences of up to `max_pages` pages each over a vocabulary of `vocab` tokens.
    fn seq_state(&mut self, max_rows: usize, max_pages: usize, vocab: usize) -> Result<SeqState<Self::Buf>> {
        Ok(SeqState {
            page_table: self.alloc("page table", max_rows * max_pages * 4)?,
            last_tokens: self.alloc("last tokens", max_rows * 4)?,
            token_counts: self.alloc("penalty counts", max_rows * vocab * 2)?,
            max_rows,
            max_pages,
            vocab,
        })
    }
    /// Room for the results of `max_samples` draws.
    fn sample_buf(&mut self, max_samples: usize) -> Result<SampleBuf<Self::Buf>> {
        Ok(SampleBuf {
            tokens: self.alloc("sampled tokens", max_samples * 4)?,
            logprobs: self.alloc("log probabilities", max_samples * 4)?,
            top_tokens: self.alloc("top tokens", max_samples * MAX_LOGPROBS * 4)?,
            top_logprobs: self.alloc("top log probabilities", max_samples * MAX_LOGPROBS * 4)?,
            max_samples,
        })
    }
}

/// Memory of a device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// What the device has.
    pub total_bytes: usize,
    /// What nobody holds.
    pub free_bytes: usize,
}

/// The KV storage of one layer. A slot is `page * page_size + offset`.
#[derive(Debug)]
pub struct KvLayer<Buf> {
    /// Keys, `[num_slots, num_kv_heads * head_dim]`, rotated.
    pub k: Tensor<Buf>,
    /// Values, `[num_slots, num_kv_heads * head_dim]`.
    pub v: Tensor<Buf>,
    /// Tokens in a page, as in [`AttnSpec::page_size`]: page copies need it before any spec is at hand.
    pub page_size: usize,
}

/// What the device keeps about each running sequence between steps. A sequence holds one row.
#[derive(Debug)]
pub struct SeqState<Buf> {
    /// `[max_rows, max_pages]` u32: the pages of each sequence in order.
    pub page_table: Buf,
    /// `[max_rows]` u32: the token sampled last.
    pub last_tokens: Buf,
    /// `[max_rows, vocab]` u16: bit 15 says that the token is in the prompt, bits 0 to 14 count how often it was
    /// generated (and stop at 32767).
    pub token_counts: Buf,
    /// Rows.
    pub max_rows: usize,
    /// Pages a row can hold.
    pub max_pages: usize,
    /// Tokens in the vocabulary.
    pub vocab: usize,
}

/// The sizes of attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttnSpec {
    /// Query heads: a multiple of `num_kv_heads`.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Elements of a head: even.
    pub head_dim: usize,
    /// Factor on the scores, as a rule `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Sliding window: how many positions a query sees, its own included.
    pub window: Option<u32>,
    /// Tokens in a page: a power of two from 1 to 256.
    pub page_size: usize,
}

impl AttnSpec {
    /// Columns of the merged projection: queries, keys, values.
    pub const fn qkv_cols(&self) -> usize {
        (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
    }

    /// Columns of the queries, and of attention's output.
    pub const fn q_cols(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Columns of the keys, and of the values.
    pub const fn kv_cols(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }
}

/// The gate's activation in a gated feed-forward layer (Shazeer 2020).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `x * Phi(x)` with the error function.
    Gelu,
    /// `x * Phi(x)` by the tanh approximation (Hendrycks, Gimpel 2016).
    GeluTanh,
}

/// Results of sampling on the device.
#[derive(Debug)]
pub struct SampleBuf<Buf> {
    /// `[max_samples]` u32.
    pub tokens: Buf,
    /// `[max_samples]` f32: log probability of the token, where asked for.
    pub logprobs: Buf,
    /// `[max_samples, MAX_LOGPROBS]` u32: the most likely tokens, best first, ties to the lowest id.
    pub top_tokens: Buf,
    /// `[max_samples, MAX_LOGPROBS]` f32: their log probabilities.
    pub top_logprobs: Buf,
    /// Samples that fit.
    pub max_samples: usize,
}

/// Results of sampling on the host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples {
    /// One token a sample; `u32::MAX` where no logit was finite.
    pub tokens: Vec<u32>,
    /// Log probability of each token; empty where not read back.
    pub logprobs: Vec<f32>,
    /// `MAX_LOGPROBS` entries a sample, of which the number asked for is meaningful; empty where not read back.
    pub top_tokens: Vec<u32>,
    /// As `top_tokens`.
    pub top_logprobs: Vec<f32>,
}
