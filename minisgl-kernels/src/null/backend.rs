use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::memory::{self, Record, get_u16, get_u32, set_u16, set_u32};
use super::{Null, NullInputs, NullPlan, check, draw};
use crate::{
    Activation, AttnSpec, Backend, DType, KernelError, KvLayer, MAX_LOGPROBS, Memory, PADDING, Result,
    SampleBuf, Samples, SeqState, StepInputs, Tensor,
};

type Mem = Vec<u8>;

const NO_GRAPHS: &str = "ops that are called one by one";

impl Backend for Null {
    type Buf = Mem;
    type Inputs = NullInputs;
    type AttnPlan = NullPlan;
    type Graph = ();
    type ReadBack = Samples;

    fn device_name(&self) -> String {
        let mode = if self.options.checked { "checked" } else { "unchecked" };
        format!("null ({mode}, {} tokens)", self.options.vocab)
    }

    fn memory(&self) -> Memory {
        Memory { total_bytes: 1 << 30, free_bytes: 1 << 30 }
    }

    fn logits_dtype(&self, dtype: DType) -> DType {
        dtype
    }

    fn has_graphs(&self) -> bool {
        false
    }

    fn alloc(&mut self, _what: &'static str, size_bytes: usize) -> Result<Mem> {
        Ok(vec![0; size_bytes])
    }

    fn write(&mut self, dst: &mut Mem, offset_bytes: usize, src: &[u8]) -> Result<()> {
        check::at_most("write", "end of the source in dst", offset_bytes + src.len(), dst.len())?;
        dst[offset_bytes..offset_bytes + src.len()].copy_from_slice(src);
        Ok(())
    }

    fn read(&mut self, src: &Mem, offset_bytes: usize, dst: &mut [u8]) -> Result<()> {
        check::at_most("read", "end of the destination in src", offset_bytes + dst.len(), src.len())?;
        dst.copy_from_slice(&src[offset_bytes..offset_bytes + dst.len()]);
        Ok(())
    }

    /// Checks the sizes; the numbers themselves are dropped.
    fn load_rows(
        &mut self,
        dst: &mut Tensor<Mem>,
        first_row: usize,
        src: &[u8],
        src_dtype: DType,
    ) -> Result<()> {
        let row_bytes = dst.cols * src_dtype.size_bytes();
        check::equal("load_rows", "bytes beyond whole rows", src.len() % row_bytes, 0)?;
        check::at_most("load_rows", "last row", first_row + src.len() / row_bytes, dst.rows)
    }

    fn fill_random(&mut self, dst: &mut Tensor<Mem>, _mean: f32, _std: f32, _seed: u64) -> Result<()> {
        check::at_most("fill_random", "dst", dst.size_bytes(), dst.buf.len())
    }

    fn inputs(&mut self, max_tokens: usize, max_seqs: usize, max_samples: usize) -> Result<NullInputs> {
        let (step, tokens, chains) = (StepInputs::default(), Vec::new(), Vec::new());
        Ok(NullInputs { max_tokens, max_seqs, max_samples, step, tokens, chains })
    }

    fn begin_step(
        &mut self,
        dst: &mut NullInputs,
        src: &StepInputs,
        state: &mut SeqState<Mem>,
        kv: &mut [KvLayer<Mem>],
    ) -> Result<()> {
        check::lengths(dst, src)?;
        if self.options.checked {
            check::contents(src, state, kv)?;
        }
        dst.step.clone_from(src);
        for update in &src.page_updates {
            let at = update.row as usize * state.max_pages + update.idx as usize;
            set_u32(&mut state.page_table, at, update.page);
        }
        let last_tokens = &state.last_tokens;
        dst.tokens.clear();
        dst.tokens.extend(src.token_ids.iter().map(|&id| match id {
            0.. => id as u32,
            _ => get_u32(last_tokens, (-1 - id) as usize),
        }));
        if self.options.checked {
            self.reset_counts(src, state);
            for layer in kv.iter_mut() {
                copy_pages(layer, &src.page_copies);
            }
            trace_histories(dst, state, kv)?;
        }
        Ok(())
    }

    fn attn_plan(&mut self, spec: &AttnSpec, max_tokens: usize, max_seqs: usize) -> Result<NullPlan> {
        check::equal("attn_plan", "spec.num_heads modulo kv heads", spec.num_heads % spec.num_kv_heads, 0)?;
        Ok(NullPlan { max_tokens, max_seqs })
    }

    fn plan_attention(&mut self, plan: &mut NullPlan, inputs: &NullInputs, _spec: &AttnSpec) -> Result<()> {
        check::at_most("plan_attention", "num_tokens", inputs.step.num_tokens(), plan.max_tokens)?;
        check::at_most("plan_attention", "num_seqs", inputs.step.num_seqs(), plan.max_seqs)
    }

    fn embedding(
        &mut self,
        out: &mut Tensor<Mem>,
        table: &Tensor<Mem>,
        inputs: &NullInputs,
        _state: &SeqState<Mem>,
    ) -> Result<()> {
        const OP: &str = "embedding";
        check::tensor(OP, "out", out, inputs.step.num_tokens(), table.cols)?;
        for &token in &inputs.tokens {
            // A row whose sample had no finite logit may be in flight once more.
            if token != u32::MAX {
                check::below(OP, "token", token as usize, table.rows)?;
            }
        }
        Ok(())
    }

    fn rms_norm(
        &mut self,
        out: &mut Tensor<Mem>,
        x: &Tensor<Mem>,
        weight: &Tensor<Mem>,
        _eps: f32,
        rows: usize,
    ) -> Result<()> {
        check::tensor("rms_norm", "x", x, rows, weight.cols)?;
        check::tensor("rms_norm", "out", out, rows, weight.cols)
    }

    fn add_rms_norm(
        &mut self,
        out: &mut Tensor<Mem>,
        residual: &mut Tensor<Mem>,
        x: &Tensor<Mem>,
        weight: &Tensor<Mem>,
        _eps: f32,
        rows: usize,
    ) -> Result<()> {
        check::tensor("add_rms_norm", "x", x, rows, weight.cols)?;
        check::tensor("add_rms_norm", "residual", residual, rows, weight.cols)?;
        check::tensor("add_rms_norm", "out", out, rows, weight.cols)
    }

    fn add(&mut self, residual: &mut Tensor<Mem>, x: &Tensor<Mem>, rows: usize) -> Result<()> {
        check::tensor("add", "x", x, rows, x.cols)?;
        check::tensor("add", "residual", residual, rows, x.cols)
    }

    fn linear(
        &mut self,
        out: &mut Tensor<Mem>,
        x: &Tensor<Mem>,
        weight: &Tensor<Mem>,
        bias: Option<&Tensor<Mem>>,
        rows: usize,
    ) -> Result<()> {
        const OP: &str = "linear";
        check::tensor(OP, "x", x, rows, weight.cols)?;
        check::tensor(OP, "out", out, rows, weight.rows)?;
        if out.dtype != DType::F32 {
            check::dtype(OP, "out", out, x)?;
        }
        bias.map_or(Ok(()), |bias| check::tensor(OP, "bias", bias, 1, weight.rows))
    }

    fn rope_store_kv(
        &mut self,
        qkv: &mut Tensor<Mem>,
        q_norm: Option<&Tensor<Mem>>,
        k_norm: Option<&Tensor<Mem>>,
        _eps: f32,
        rope: &Tensor<Mem>,
        inputs: &NullInputs,
        spec: &AttnSpec,
        kv: &mut KvLayer<Mem>,
    ) -> Result<()> {
        const OP: &str = "rope_store_kv";
        check::tensor(OP, "qkv", qkv, inputs.step.num_tokens(), spec.qkv_cols())?;
        for norm in [q_norm, k_norm].into_iter().flatten() {
            check::tensor(OP, "norm", norm, 1, spec.head_dim)?;
        }
        check::equal(OP, "rope.cols", rope.cols, spec.head_dim)?;
        check_kv(OP, kv, spec)?;
        if !self.options.checked {
            return Ok(());
        }
        let step = &inputs.step;
        for (t, &slot) in step.slots.iter().enumerate() {
            if slot == PADDING {
                continue;
            }
            let position = step.positions[t];
            check::below(OP, "position", position as usize, rope.rows)?;
            let (token, chain) = (inputs.tokens[t], inputs.chains[t]);
            Record { token, position_plus_1: position + 1, chain }.store(OP, kv, slot as usize)?;
        }
        Ok(())
    }

    fn attention(
        &mut self,
        out: &mut Tensor<Mem>,
        qkv: &Tensor<Mem>,
        kv: &KvLayer<Mem>,
        inputs: &NullInputs,
        state: &SeqState<Mem>,
        _plan: &NullPlan,
        spec: &AttnSpec,
    ) -> Result<()> {
        const OP: &str = "attention";
        let step = &inputs.step;
        check::tensor(OP, "qkv", qkv, step.num_tokens(), spec.qkv_cols())?;
        check::tensor(OP, "out", out, step.num_tokens(), spec.q_cols())?;
        check_kv(OP, kv, spec)?;
        if !self.options.checked {
            return Ok(());
        }
        let mut tokens = Vec::new();
        for s in 0..step.num_seqs() {
            let (start, end) = (step.cu_q_lens[s] as usize, step.cu_q_lens[s + 1] as usize);
            let (row, kv_len) = (step.seq_rows[s] as usize, step.kv_lens[s] as usize);
            let first_query = kv_len - (end - start);
            let window = spec.window.map_or(usize::MAX, |window| window as usize);
            let first = (first_query + 1).saturating_sub(window).min(kv_len);
            memory::read_history(kv, state, row, first, kv_len, &mut tokens)?;
            for (&read, &stored) in tokens[first_query - first..].iter().zip(&inputs.tokens[start..end]) {
                check::equal(OP, "token of a query's slot", read as usize, stored as usize)?;
            }
        }
        Ok(())
    }

    fn act_mul(
        &mut self,
        out: &mut Tensor<Mem>,
        gate_up: &Tensor<Mem>,
        _activation: Activation,
        rows: usize,
    ) -> Result<()> {
        check::tensor("act_mul", "out", out, rows, out.cols)?;
        check::tensor("act_mul", "gate_up", gate_up, rows, 2 * out.cols)
    }

    fn gather_samples(&mut self, out: &mut Tensor<Mem>, x: &Tensor<Mem>, inputs: &NullInputs) -> Result<()> {
        check::tensor("gather_samples", "x", x, inputs.step.num_tokens(), x.cols)?;
        check::tensor("gather_samples", "out", out, inputs.step.num_samples(), x.cols)
    }

    fn sample(
        &mut self,
        out: &mut SampleBuf<Mem>,
        logits: &Tensor<Mem>,
        inputs: &NullInputs,
        state: &mut SeqState<Mem>,
    ) -> Result<()> {
        const OP: &str = "sample";
        let (step, vocab) = (&inputs.step, self.options.vocab);
        check::equal(OP, "state.vocab", state.vocab, vocab)?;
        check::tensor(OP, "logits", logits, step.num_samples(), vocab)?;
        check::at_most(OP, "num_samples", step.num_samples(), out.max_samples)?;
        for (s, sample) in step.samples.iter().enumerate() {
            if sample.seq_row == PADDING {
                continue;
            }
            let (t, row) = (step.sample_tokens[s] as usize, sample.seq_row as usize);
            let chain = match self.options.checked {
                true => inputs.chains[t],
                false => memory::chain(memory::EMPTY, inputs.tokens[t]),
            };
            let token = draw(chain, sample, vocab);
            set_u32(&mut out.tokens, s, token);
            set_u32(&mut state.last_tokens, row, token);
            if sample.num_logprobs >= 0 {
                report_logprobs(out, s, token, vocab);
            }
            if self.options.checked && sample.has_penalties() {
                let num_known =
                    sample.position.saturating_sub(self.num_prompts.get(row).copied().unwrap_or(0));
                check_and_count(state, row, token, num_known as usize)?;
            }
        }
        Ok(())
    }

    fn read_back(&mut self, out: &SampleBuf<Mem>, num_samples: usize, logprobs: bool) -> Result<Samples> {
        check::at_most("read_back", "num_samples", num_samples, out.max_samples)?;
        let ints = |buf: &Mem, len: usize| (0..len).map(|i| get_u32(buf, i)).collect::<Vec<u32>>();
        let floats = |buf: &Mem, len: usize| (0..len).map(|i| f32::from_bits(get_u32(buf, i))).collect();
        let mut samples = Samples { tokens: ints(&out.tokens, num_samples), ..Samples::default() };
        if logprobs {
            samples.logprobs = floats(&out.logprobs, num_samples);
            samples.top_tokens = ints(&out.top_tokens, num_samples * MAX_LOGPROBS);
            samples.top_logprobs = floats(&out.top_logprobs, num_samples * MAX_LOGPROBS);
        }
        Ok(samples)
    }

    fn wait(&mut self, read_back: Samples) -> Result<Samples> {
        Ok(read_back)
    }

    fn capture(&mut self, _body: &mut dyn FnMut(&mut Self) -> Result<()>) -> Result<()> {
        let (what, supported) = ("graphs".into(), NO_GRAPHS.into());
        Err(KernelError::Unsupported { op: "capture", what, supported })
    }

    fn replay(&mut self, _graph: &()) -> Result<()> {
        let (what, supported) = ("graphs".into(), NO_GRAPHS.into());
        Err(KernelError::Unsupported { op: "replay", what, supported })
    }

    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }

    fn elapsed(&mut self, body: &mut dyn FnMut(&mut Self) -> Result<()>) -> Result<Duration> {
        let start = Instant::now();
        body(self)?;
        Ok(start.elapsed())
    }
}

impl Null {
    fn reset_counts(&mut self, src: &StepInputs, state: &mut SeqState<Mem>) {
        for reset in &src.count_resets {
            let (row, num_prompt) = (reset.row as usize, reset.num_prompt as usize);
            self.num_prompts.resize(self.num_prompts.len().max(row + 1), 0);
            self.num_prompts[row] = reset.num_prompt;
            let first = row * state.vocab;
            state.token_counts[2 * first..2 * (first + state.vocab)].fill(0);
            for (i, &token) in reset.tokens.iter().enumerate() {
                let at = first + token as usize;
                let count = get_u16(&state.token_counts, at);
                let count = if i < num_prompt { count | 0x8000 } else { count_one_more(count) };
                set_u16(&mut state.token_counts, at, count);
            }
        }
    }
}

/// One more time generated; bit 15, which marks prompt tokens, stays.
fn count_one_more(count: u16) -> u16 {
    (count & 0x8000) | ((count & 0x7FFF) + 1).min(0x7FFF)
}

/// Checks that the counts of `row` add up to the tokens generated so far, then counts `token`.
fn check_and_count(state: &mut SeqState<Mem>, row: usize, token: u32, num_generated: usize) -> Result<()> {
    let first = row * state.vocab;
    let counts = (first..first + state.vocab).map(|at| get_u16(&state.token_counts, at) & 0x7FFF);
    let total: usize = counts.map(usize::from).sum();
    check::equal("sample", "generated tokens in token_counts", total, num_generated)?;
    let count = get_u16(&state.token_counts, first + token as usize);
    set_u16(&mut state.token_counts, first + token as usize, count_one_more(count));
    Ok(())
}

/// Falling made-up log probabilities: the token's, then those of the ids after it.
fn report_logprobs(out: &mut SampleBuf<Mem>, s: usize, token: u32, vocab: usize) {
    set_u32(&mut out.logprobs, s, (-0.5f32).to_bits());
    for i in 0..MAX_LOGPROBS {
        let at = s * MAX_LOGPROBS + i;
        set_u32(&mut out.top_tokens, at, ((token as usize + i) % vocab) as u32);
        set_u32(&mut out.top_logprobs, at, (-0.5 - i as f32).to_bits());
    }
}

fn check_kv(op: &'static str, kv: &KvLayer<Mem>, spec: &AttnSpec) -> Result<()> {
    check::equal(op, "kv.page_size", kv.page_size, spec.page_size)?;
    check::tensor(op, "kv.k", &kv.k, kv.k.rows, spec.kv_cols())?;
    check::tensor(op, "kv.v", &kv.v, kv.k.rows, spec.kv_cols())
}

fn copy_pages(kv: &mut KvLayer<Mem>, copies: &[(u32, u32)]) {
    for tensor in [&mut kv.k, &mut kv.v] {
        let row_bytes = (tensor.cols * tensor.dtype.size_bytes()) & !3;
        let page_bytes = kv.page_size * row_bytes;
        for &(from, to) in copies {
            let from = from as usize * page_bytes;
            tensor.buf.copy_within(from..from + page_bytes, to as usize * page_bytes);
        }
    }
}

/// Computes the hash of the history up to each token, from what the page table leads to.
fn trace_histories(dst: &mut NullInputs, state: &SeqState<Mem>, kv: &[KvLayer<Mem>]) -> Result<()> {
    const OP: &str = "begin_step";
    let step = &dst.step;
    dst.chains.clear();
    dst.chains.resize(step.num_tokens(), memory::EMPTY);
    let Some(layer) = kv.first() else { return Ok(()) };
    let mut writers: HashMap<u32, usize> = HashMap::new();
    for s in 0..step.num_seqs() {
        let (start, end) = (step.cu_q_lens[s] as usize, step.cu_q_lens[s + 1] as usize);
        let row = step.seq_rows[s] as usize;
        let first = step.kv_lens[s] as usize - (end - start);
        let mut chain = memory::EMPTY;
        if first > 0 && start < end {
            let slot = memory::slot_of(state, layer.page_size, row, first - 1);
            chain = Record::load(OP, layer, slot)?.chain;
        }
        for t in start..end {
            chain = memory::chain(chain, dst.tokens[t]);
            dst.chains[t] = chain;
            let expected = memory::slot_of(state, layer.page_size, row, step.positions[t] as usize);
            check::equal(OP, "slot", step.slots[t] as usize, expected)?;
            if let Some(other) = writers.insert(step.slots[t], row) {
                return Err(KernelError::Device {
                    op: OP,
                    device: "null".into(),
                    message: format!("slot {} is written by rows {other} and {row}", step.slots[t]),
                });
            }
        }
    }
    Ok(())
}
