//! A backend that computes every op with the oracle, rounds as naively as the tolerances allow, and can be told
//! to make one mistake: it shows that the checks accept a plain implementation and refuse each mistake.

mod draw;
mod fault;
mod memory;

use std::time::Duration;

use minisgl_kernels::{
    Activation, AttnSpec, Backend, DType, KernelError, KvLayer, MAX_LOGPROBS, Memory, PADDING, Result,
    SampleBuf, Samples, SeqState, StepInputs, Tensor,
};
use minisgl_reference::{self as reference, Precision};

use super::support::{Rng, encode, precision};
use memory::{count, decode, fits, get, put, put_count, put_word, room, typed, words};

pub use fault::Fault;

/// The oracle as a backend.
#[derive(Clone, Copy, Debug, Default)]
pub struct Naive {
    /// The mistake to make, if any.
    pub fault: Option<Fault>,
    /// Results written so far.
    num_results: u64,
}

impl Naive {
    /// The oracle with a mistake.
    pub fn with(fault: Fault) -> Self {
        Self { fault: Some(fault), num_results: 0 }
    }

    /// For an op inside of another one, which counts as one result.
    fn part(&self) -> Self {
        Self { fault: self.fault, num_results: 0 }
    }

    /// Writes the result of an op.
    fn put_result(&mut self, out: &mut Tensor<Vec<u8>>, values: &[f64]) {
        put(out, 0, values);
        if !values.is_empty() {
            self.count_result(&mut out.buf);
        }
    }

    fn count_result(&mut self, result: &mut [u8]) {
        self.num_results += 1;
        if self.has(Fault::EveryOtherRunOffByOneBit) && self.num_results.is_multiple_of(2) {
            result[0] ^= 1;
        }
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }
}

/// The inputs of a step.
#[derive(Debug)]
pub struct NaiveInputs {
    step: StepInputs,
}

impl Backend for Naive {
    type Buf = Vec<u8>;
    type Inputs = NaiveInputs;
    type AttnPlan = ();
    type Graph = ();
    type ReadBack = Samples;

    fn device_name(&self) -> String {
        self.fault.map_or("the oracle".into(), |fault| format!("the oracle with the fault {fault:?}"))
    }

    fn memory(&self) -> Memory {
        Memory { total_bytes: 1 << 30, free_bytes: 1 << 30 }
    }

    fn logits_dtype(&self, _: DType) -> DType {
        DType::F32
    }

    fn has_graphs(&self) -> bool {
        false
    }

    fn alloc(&mut self, _: &'static str, size_bytes: usize) -> Result<Vec<u8>> {
        Ok(vec![0; size_bytes])
    }

    fn write(&mut self, dst: &mut Vec<u8>, offset_bytes: usize, src: &[u8]) -> Result<()> {
        room("write", "offset + bytes", offset_bytes + src.len(), dst.len())?;
        dst[offset_bytes..offset_bytes + src.len()].copy_from_slice(src);
        Ok(())
    }

    fn read(&mut self, src: &Vec<u8>, offset_bytes: usize, dst: &mut [u8]) -> Result<()> {
        room("read", "offset + bytes", offset_bytes + dst.len(), src.len())?;
        dst.copy_from_slice(&src[offset_bytes..offset_bytes + dst.len()]);
        Ok(())
    }

    fn load_rows(
        &mut self,
        dst: &mut Tensor<Vec<u8>>,
        first_row: usize,
        src: &[u8],
        src_dtype: DType,
    ) -> Result<()> {
        let row_bytes = dst.cols * src_dtype.size_bytes();
        fits("load_rows", "src.len() % row", 0, src.len() % row_bytes)?;
        room("load_rows", "rows", first_row + src.len() / row_bytes, dst.rows)?;
        let mut values = decode(src_dtype, src);
        if self.has(Fault::LoadTruncates) && dst.dtype == DType::BF16 {
            for x in &mut values {
                *x = f64::from(f32::from_bits((*x as f32).to_bits() & 0xFFFF_0000));
            }
        }
        put(dst, if self.has(Fault::LoadFirstRow) { 0 } else { first_row }, &values);
        if !values.is_empty() {
            self.count_result(&mut dst.buf[first_row * dst.cols * dst.dtype.size_bytes()..]);
        }
        Ok(())
    }

    fn fill_random(&mut self, dst: &mut Tensor<Vec<u8>>, mean: f32, std: f32, seed: u64) -> Result<()> {
        let mut rng = Rng::new(if self.has(Fault::RandomIgnoresSeed) { 0 } else { seed });
        let reach = 12f64.sqrt() * f64::from(std);
        let values: Vec<f64> =
            (0..dst.rows * dst.cols).map(|_| f64::from(mean) + reach * (rng.unit() - 0.5)).collect();
        self.put_result(dst, &values);
        Ok(())
    }

    fn inputs(&mut self, _: usize, _: usize, _: usize) -> Result<NaiveInputs> {
        Ok(NaiveInputs { step: StepInputs::default() })
    }

    fn begin_step(
        &mut self,
        dst: &mut NaiveInputs,
        src: &StepInputs,
        state: &mut SeqState<Vec<u8>>,
        kv: &mut [KvLayer<Vec<u8>>],
    ) -> Result<()> {
        let lost = usize::from(self.has(Fault::PageUpdateLost));
        for update in src.page_updates.iter().skip(lost) {
            let cell = update.row as usize * state.max_pages + update.idx as usize;
            put_word(&mut state.page_table, cell, update.page);
        }
        for reset in &src.count_resets {
            let first = reset.row as usize * state.vocab;
            if !self.has(Fault::CountResetKeepsOld) {
                state.token_counts[first * 2..(first + state.vocab) * 2].fill(0);
            }
            let num_prompt = reset.num_prompt as usize + usize::from(self.has(Fault::CountPromptOffByOne));
            for (i, &token) in reset.tokens.iter().enumerate() {
                let cell = first + token as usize;
                let old = count(&state.token_counts, cell);
                let grown = if old & 0x7fff == 0x7fff { old } else { old + 1 };
                put_count(&mut state.token_counts, cell, if i < num_prompt { old | 0x8000 } else { grown });
            }
        }
        let layers = if self.has(Fault::PageCopyFirstLayerOnly) { 1 } else { kv.len() };
        for layer in kv.iter_mut().take(layers) {
            let page_bytes = layer.page_size * layer.k.cols * layer.k.dtype.size_bytes();
            for &(from, to) in &src.page_copies {
                let (from, to) = (from as usize * page_bytes, to as usize * page_bytes);
                layer.k.buf.copy_within(from..from + page_bytes, to);
                layer.v.buf.copy_within(from..from + page_bytes, to);
            }
        }
        dst.step = src.clone();
        Ok(())
    }

    fn attn_plan(&mut self, _: &AttnSpec, _: usize, _: usize) -> Result<()> {
        Ok(())
    }

    fn plan_attention(&mut self, (): &mut (), _: &NaiveInputs, _: &AttnSpec) -> Result<()> {
        Ok(())
    }

    fn embedding(
        &mut self,
        out: &mut Tensor<Vec<u8>>,
        table: &Tensor<Vec<u8>>,
        inputs: &NaiveInputs,
        state: &SeqState<Vec<u8>>,
    ) -> Result<()> {
        let last_tokens = words(&state.last_tokens);
        let resolve = |&id: &i32| match id {
            0.. => id as u32,
            _ if self.has(Fault::EmbeddingHostTokenOnly) => 0,
            _ => last_tokens[(-1 - id) as usize],
        };
        let mut tokens: Vec<u32> = inputs.step.token_ids.iter().map(resolve).collect();
        typed("embedding", "out", table.dtype, out.dtype)?;
        fits("embedding", "out.cols", table.cols, out.cols)?;
        room("embedding", "tokens", tokens.len(), out.rows)?;
        if self.has(Fault::EmbeddingExtraRow) {
            tokens.push(0);
        }
        self.put_result(out, &reference::embedding(&get(table, table.rows), table.cols, &tokens));
        Ok(())
    }

    fn rms_norm(
        &mut self,
        out: &mut Tensor<Vec<u8>>,
        x: &Tensor<Vec<u8>>,
        weight: &Tensor<Vec<u8>>,
        eps: f32,
        rows: usize,
    ) -> Result<()> {
        typed("rms_norm", "out", x.dtype, out.dtype)?;
        fits("rms_norm", "out.cols", x.cols, out.cols)?;
        fits("rms_norm", "weight.cols", x.cols, weight.cols)?;
        room("rms_norm", "rows", rows, x.rows.min(out.rows))?;
        let eps = if self.has(Fault::NormWithoutEps) { 0.0 } else { f64::from(eps) };
        let rows = if self.has(Fault::NormWritesSpareRow) { x.rows } else { rows };
        self.put_result(out, &reference::rms_norm(&get(x, rows), &get(weight, 1), eps, precision(x.dtype)));
        Ok(())
    }

    fn add_rms_norm(
        &mut self,
        out: &mut Tensor<Vec<u8>>,
        residual: &mut Tensor<Vec<u8>>,
        x: &Tensor<Vec<u8>>,
        weight: &Tensor<Vec<u8>>,
        eps: f32,
        rows: usize,
    ) -> Result<()> {
        fits("add_rms_norm", "out.cols", x.cols, out.cols)?;
        room("add_rms_norm", "rows", rows, x.rows.min(out.rows).min(residual.rows))?;
        let (r, x_values, p) = (get(residual, rows), get(x, rows), precision(x.dtype));
        let sums: Vec<f64> = r.iter().zip(&x_values).map(|(r, x)| Precision::F32.store(r + x)).collect();
        if !self.has(Fault::ResidualNotStored) {
            put(residual, 0, &sums);
        }
        let stored: Vec<f64> = sums.iter().map(|&x| p.store(x)).collect();
        self.put_result(out, &reference::rms_norm(&stored, &get(weight, 1), f64::from(eps), p));
        Ok(())
    }

    fn linear(
        &mut self,
        out: &mut Tensor<Vec<u8>>,
        x: &Tensor<Vec<u8>>,
        weight: &Tensor<Vec<u8>>,
        bias: Option<&Tensor<Vec<u8>>>,
        rows: usize,
    ) -> Result<()> {
        fits("linear", "weight.cols", x.cols, weight.cols)?;
        fits("linear", "out.cols", weight.rows, out.cols)?;
        typed("linear", "weight", x.dtype, weight.dtype)?;
        if out.dtype != DType::F32 {
            typed("linear", "out", x.dtype, out.dtype)?;
        }
        if let Some(bias) = bias {
            fits("linear", "bias.cols", weight.rows, bias.cols)?;
        }
        room("linear", "rows", rows, x.rows.min(out.rows))?;
        let (mut x_values, mut w, k) = (get(x, rows), get(weight, weight.rows), x.cols);
        if self.has(Fault::LinearDropsLastOfK) {
            w.chunks_exact_mut(k).for_each(|row| row[k - 1] = 0.0);
        }
        if self.has(Fault::LinearDependsOnRows) && rows.is_multiple_of(2) {
            x_values.chunks_exact_mut(k).for_each(<[f64]>::reverse);
            w.chunks_exact_mut(k).for_each(<[f64]>::reverse);
        }
        let bias = bias.filter(|_| !self.has(Fault::LinearDropsBias)).map(|bias| get(bias, 1));
        let p = precision(out.dtype);
        let mut result = reference::linear(&x_values, &w, bias.as_deref(), k, p);
        if self.has(Fault::LinearAccumulatesInOut) {
            let old = get(out, rows);
            result.iter_mut().zip(old).for_each(|(result, old)| *result += old);
        }
        if self.has(Fault::LinearRoundsSums) {
            let p = precision(x.dtype);
            let rounded = x_values.chunks_exact(k).flat_map(|x| {
                w.chunks_exact(k).map(move |w| x.iter().zip(w).fold(0.0, |sum, (x, w)| p.store(sum + x * w)))
            });
            result = rounded.collect();
        }
        self.put_result(out, &result);
        Ok(())
    }

    fn add(&mut self, residual: &mut Tensor<Vec<u8>>, x: &Tensor<Vec<u8>>, rows: usize) -> Result<()> {
        typed("add", "residual", x.dtype, residual.dtype)?;
        fits("add", "residual.cols", x.cols, residual.cols)?;
        room("add", "rows", rows, x.rows.min(residual.rows))?;
        let rows = if self.has(Fault::AddWritesSpareRow) { x.rows } else { rows };
        let before = get(residual, rows);
        let sums = before.iter().zip(get(x, rows)).map(|(r, x)| Precision::F32.store(r + x));
        self.put_result(residual, &sums.collect::<Vec<f64>>());
        Ok(())
    }

    fn norm_linear(
        &mut self,
        out: &mut Tensor<Vec<u8>>,
        normed: &mut Tensor<Vec<u8>>,
        x: &Tensor<Vec<u8>>,
        norm: &Tensor<Vec<u8>>,
        eps: f32,
        weight: &Tensor<Vec<u8>>,
        bias: Option<&Tensor<Vec<u8>>>,
        rows: usize,
    ) -> Result<()> {
        self.part().rms_norm(normed, x, norm, eps, rows)?;
        let x = if self.has(Fault::NormLinearWithoutNorm) { x } else { normed };
        self.linear(out, x, weight, bias, rows)
    }

    fn linear_add(
        &mut self,
        residual: &mut Tensor<Vec<u8>>,
        delta: &mut Tensor<Vec<u8>>,
        x: &Tensor<Vec<u8>>,
        weight: &Tensor<Vec<u8>>,
        bias: Option<&Tensor<Vec<u8>>>,
        rows: usize,
    ) -> Result<()> {
        if self.has(Fault::LinearAddOverwrites) {
            return self.linear(residual, x, weight, bias, rows);
        }
        self.part().linear(delta, x, weight, bias, rows)?;
        self.add(residual, delta, rows)
    }

    fn norm_gated_linear(
        &mut self,
        out: &mut Tensor<Vec<u8>>,
        normed: &mut Tensor<Vec<u8>>,
        gate_up: &mut Tensor<Vec<u8>>,
        x: &Tensor<Vec<u8>>,
        norm: &Tensor<Vec<u8>>,
        eps: f32,
        weight: &Tensor<Vec<u8>>,
        bias: Option<&Tensor<Vec<u8>>>,
        activation: Activation,
        rows: usize,
    ) -> Result<()> {
        self.part().norm_linear(gate_up, normed, x, norm, eps, weight, bias, rows)?;
        if self.has(Fault::GatedSwapsHalves) {
            let mut values = get(gate_up, rows);
            let half = gate_up.cols / 2;
            values.chunks_exact_mut(2 * half).for_each(|row| row.rotate_left(half));
            put(gate_up, 0, &values);
        }
        self.act_mul(out, gate_up, activation, rows)
    }

    fn rope_store_kv(
        &mut self,
        qkv: &mut Tensor<Vec<u8>>,
        q_norm: Option<&Tensor<Vec<u8>>>,
        k_norm: Option<&Tensor<Vec<u8>>>,
        eps: f32,
        rope: &Tensor<Vec<u8>>,
        inputs: &NaiveInputs,
        spec: &AttnSpec,
        kv: &mut KvLayer<Vec<u8>>,
    ) -> Result<()> {
        fits("rope_store_kv", "qkv.cols", spec.qkv_cols(), qkv.cols)?;
        fits("rope_store_kv", "rope.cols", spec.head_dim, rope.cols)?;
        for norm in [q_norm, k_norm].into_iter().flatten() {
            fits("rope_store_kv", "norm.cols", spec.head_dim, norm.cols)?;
        }
        let (d, p, eps) = (spec.head_dim, precision(qkv.dtype), f64::from(eps));
        let tokens = inputs.step.num_tokens();
        let table = get(rope, rope.rows);
        let mut positions = inputs.step.positions.clone();
        if self.has(Fault::RopePositionOffByOne) {
            positions.iter_mut().for_each(|position| *position = position.saturating_sub(1));
        }
        let num_positions = positions.iter().max().map_or(0, |&last| last as usize + 1);
        room("rope_store_kv", "rope.rows", num_positions, rope.rows)?;
        let mut values = get(qkv, tokens);
        for t in 0..tokens {
            let row = &mut values[t * spec.qkv_cols()..][..spec.qkv_cols()];
            let raw_key = row[spec.q_cols()..spec.q_cols() + spec.kv_cols()].to_vec();
            for (range, norm) in
                [(0..spec.q_cols(), q_norm), (spec.q_cols()..spec.q_cols() + spec.kv_cols(), k_norm)]
            {
                let heads = &mut row[range];
                if self.has(Fault::RopeInterleaved) {
                    for head in heads.chunks_exact_mut(d) {
                        let pairs: Vec<f64> = (0..d).map(|i| head[(i % (d / 2)) * 2 + i / (d / 2)]).collect();
                        head.copy_from_slice(&pairs);
                    }
                }
                let norm = norm.map(|norm| get(norm, 1));
                let (first, last) = if self.has(Fault::RopeNormAfter) {
                    (None, norm.as_deref())
                } else {
                    (norm.as_deref(), None)
                };
                let mut out = reference::norm_rope(heads, d, first, eps, &table, &positions[t..=t], p);
                if let Some(norm) = last {
                    out = reference::rms_norm(&out, norm, eps, p);
                }
                heads.copy_from_slice(&out);
            }
            let slot = match inputs.step.slots[t] {
                PADDING if !self.has(Fault::StorePadding) => continue,
                PADDING => 0,
                slot => slot as usize,
            };
            let (key, value) = row[spec.q_cols()..].split_at(spec.kv_cols());
            put(&mut kv.k, slot, if self.has(Fault::StoreUnrotatedKey) { &raw_key } else { key });
            put(&mut kv.v, slot, value);
        }
        self.put_result(qkv, &values);
        Ok(())
    }

    fn attention(
        &mut self,
        out: &mut Tensor<Vec<u8>>,
        qkv: &Tensor<Vec<u8>>,
        kv: &KvLayer<Vec<u8>>,
        inputs: &NaiveInputs,
        state: &SeqState<Vec<u8>>,
        (): &(),
        spec: &AttnSpec,
    ) -> Result<()> {
        fits("attention", "out.cols", spec.q_cols(), out.cols)?;
        typed("attention", "kv", qkv.dtype, kv.k.dtype)?;
        let (step, d, p) = (&inputs.step, spec.head_dim, precision(qkv.dtype));
        let (q, k, v) = (get(qkv, step.num_tokens()), get(&kv.k, kv.k.rows), get(&kv.v, kv.v.rows));
        let page_table = words(&state.page_table);
        let one_head = reference::AttnSpec {
            num_heads: 1,
            num_kv_heads: 1,
            head_dim: d,
            scale: if self.has(Fault::AttentionUnscaled) { 1.0 } else { f64::from(spec.scale) },
            window: spec.window.map(|w| w as usize + usize::from(self.has(Fault::AttentionWindowOffByOne))),
        };
        for seq in (0..step.num_seqs()).filter(|&seq| step.kv_lens[seq] > 0) {
            let row = if self.has(Fault::AttentionPageTable) { seq } else { step.seq_rows[seq] as usize };
            let pages = &page_table[row * state.max_pages..];
            let kv_len = step.kv_lens[seq] as usize;
            let tokens = step.cu_q_lens[seq] as usize..step.cu_q_lens[seq + 1] as usize;
            for h in 0..spec.num_heads {
                let group = spec.num_heads / spec.num_kv_heads;
                let wrong = self.has(Fault::AttentionWrongGroup);
                let kv_head = if wrong { h % spec.num_kv_heads } else { h / group };
                let gather = |storage: &[f64], from: usize, to: usize| -> Vec<f64> {
                    let slot = |j| pages[j / spec.page_size] as usize * spec.page_size + j % spec.page_size;
                    let element = |j| (slot(j) * spec.num_kv_heads + kv_head) * d;
                    // A wrong page is a zero here, where a device would read whatever is there.
                    let head =
                        |j| storage.get(element(j)..element(j) + d).map_or(vec![0.0; d], <[f64]>::to_vec);
                    (from..to).flat_map(head).collect()
                };
                let (keys, values) = (gather(&k, 0, kv_len), gather(&v, 0, kv_len));
                for (i, token) in tokens.clone().enumerate() {
                    let query = &q[token * spec.qkv_cols() + h * d..][..d];
                    let causal = kv_len - tokens.len() + i + 1;
                    let seen = if self.has(Fault::AttentionNotCausal) { kv_len } else { causal };
                    let mut result =
                        reference::attention(query, &keys[..seen * d], &values[..seen * d], &one_head, p);
                    if self.has(Fault::AttentionReadsTail) && !kv_len.is_multiple_of(spec.page_size) {
                        let masked = gather(&v, kv_len, kv_len + 1);
                        result.iter_mut().zip(masked).for_each(|(result, v)| *result += 0.0 * v);
                    }
                    let first = (token * spec.q_cols() + h * d) * out.dtype.size_bytes();
                    let bytes = encode(out.dtype, &result);
                    out.buf[first..first + bytes.len()].copy_from_slice(&bytes);
                }
            }
        }
        if step.num_tokens() > 0 {
            self.count_result(&mut out.buf);
        }
        Ok(())
    }

    fn rope_attention(
        &mut self,
        out: &mut Tensor<Vec<u8>>,
        qkv: &mut Tensor<Vec<u8>>,
        q_norm: Option<&Tensor<Vec<u8>>>,
        k_norm: Option<&Tensor<Vec<u8>>>,
        eps: f32,
        rope: &Tensor<Vec<u8>>,
        kv: &mut KvLayer<Vec<u8>>,
        inputs: &NaiveInputs,
        state: &SeqState<Vec<u8>>,
        plan: &(),
        spec: &AttnSpec,
    ) -> Result<()> {
        let (projected, before) = (qkv.buf.clone(), kv.v.buf.clone());
        self.part().rope_store_kv(qkv, q_norm, k_norm, eps, rope, inputs, spec, kv)?;
        if self.has(Fault::RopeAttentionRawQueries) {
            qkv.buf = projected;
        }
        if self.has(Fault::RopeAttentionForgetsValue) {
            kv.v.buf = before;
        }
        self.attention(out, qkv, kv, inputs, state, plan, spec)
    }

    fn act_mul(
        &mut self,
        out: &mut Tensor<Vec<u8>>,
        gate_up: &Tensor<Vec<u8>>,
        activation: Activation,
        rows: usize,
    ) -> Result<()> {
        fits("act_mul", "gate_up.cols", 2 * out.cols, gate_up.cols)?;
        room("act_mul", "rows", rows, out.rows.min(gate_up.rows))?;
        let kind = match activation {
            Activation::Silu => reference::Activation::Silu,
            Activation::GeluTanh if self.has(Fault::GeluForTanh) => reference::Activation::Gelu,
            Activation::Gelu => reference::Activation::Gelu,
            Activation::GeluTanh => reference::Activation::GeluTanh,
        };
        let mut values = get(gate_up, rows);
        if self.has(Fault::SiluWithoutUp) {
            values.chunks_exact_mut(2 * out.cols).for_each(|row| row[out.cols..].fill(1.0));
        }
        let result = reference::act_mul(&values, out.cols, kind, precision(out.dtype));
        self.put_result(out, &result);
        Ok(())
    }

    fn gather_samples(
        &mut self,
        out: &mut Tensor<Vec<u8>>,
        x: &Tensor<Vec<u8>>,
        inputs: &NaiveInputs,
    ) -> Result<()> {
        fits("gather_samples", "out.cols", x.cols, out.cols)?;
        room("gather_samples", "samples", inputs.step.num_samples(), out.rows)?;
        let mut rows = inputs.step.sample_tokens.clone();
        if self.has(Fault::GatherFirst) {
            rows.iter_mut().for_each(|row| *row = row.saturating_sub(1));
        }
        self.put_result(out, &reference::gather_samples(&get(x, x.rows), x.cols, &rows));
        Ok(())
    }

    fn sample(
        &mut self,
        out: &mut SampleBuf<Vec<u8>>,
        logits: &Tensor<Vec<u8>>,
        inputs: &NaiveInputs,
        state: &mut SeqState<Vec<u8>>,
    ) -> Result<()> {
        let samples = &inputs.step.samples;
        room("sample", "samples", samples.len(), out.max_samples)?;
        fits("sample", "logits.cols", state.vocab, logits.cols)?;
        let (vocab, values) = (state.vocab, get(logits, samples.len()));
        for (i, sample) in samples.iter().enumerate().filter(|(_, sample)| sample.seq_row != PADDING) {
            let row = &values[i * vocab..(i + 1) * vocab];
            let first = sample.seq_row as usize * vocab;
            let (mut prompt, mut generated) = (Vec::new(), Vec::new());
            for token in (0..vocab).filter(|_| sample.has_penalties()) {
                let count = count(&state.token_counts, first + token);
                prompt.extend((count & 0x8000 != 0).then_some(token as u32));
                generated.extend(vec![token as u32; usize::from(count & 0x7fff)]);
            }
            let token = self.draw(row, &prompt, &generated, sample, i).unwrap_or(u32::MAX);
            put_word(&mut out.tokens, i, token);
            if !self.has(Fault::SampleForgetsLastToken) {
                put_word(&mut state.last_tokens, sample.seq_row as usize, token);
            }
            if token == u32::MAX {
                continue;
            }
            let cell = first + token as usize;
            if sample.has_penalties() && !self.has(Fault::SampleForgetsCount) {
                let old = count(&state.token_counts, cell);
                put_count(&mut state.token_counts, cell, if old & 0x7fff == 0x7fff { old } else { old + 1 });
            }
            let mut row = row.to_vec();
            if self.has(Fault::LogprobsAfterTemperature) && !sample.is_greedy() {
                row.iter_mut().for_each(|x| *x /= f64::from(sample.temperature));
            }
            let logprobs = reference::log_softmax(&row, Precision::F32);
            put_word(&mut out.logprobs, i, (logprobs[token as usize] as f32).to_bits());
            let mut order: Vec<usize> = (0..vocab).filter(|&t| row[t].is_finite()).collect();
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
            for (j, &token) in order.iter().take(MAX_LOGPROBS).enumerate() {
                put_word(&mut out.top_tokens, i * MAX_LOGPROBS + j, token as u32);
                put_word(&mut out.top_logprobs, i * MAX_LOGPROBS + j, (logprobs[token] as f32).to_bits());
            }
        }
        self.count_result(&mut out.logprobs);
        Ok(())
    }

    fn read_back(&mut self, out: &SampleBuf<Vec<u8>>, num_samples: usize, logprobs: bool) -> Result<Samples> {
        let floats = |buf: &[u8]| -> Vec<f32> { words(buf).into_iter().map(f32::from_bits).collect() };
        let tokens = words(&out.tokens)[..num_samples].to_vec();
        if !logprobs {
            return Ok(Samples { tokens, ..Samples::default() });
        }
        Ok(Samples {
            tokens,
            logprobs: floats(&out.logprobs),
            top_tokens: words(&out.top_tokens),
            top_logprobs: floats(&out.top_logprobs),
        })
    }

    fn wait(&mut self, read_back: Samples) -> Result<Samples> {
        Ok(read_back)
    }

    fn capture(&mut self, _: &mut dyn FnMut(&mut Self) -> Result<()>) -> Result<()> {
        let (what, supported) = ("graphs".into(), "none".into());
        Err(KernelError::Unsupported { op: "capture", what, supported })
    }

    fn replay(&mut self, (): &()) -> Result<()> {
        self.capture(&mut |_| Ok(()))
    }

    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }

    fn elapsed(&mut self, body: &mut dyn FnMut(&mut Self) -> Result<()>) -> Result<Duration> {
        let start = std::time::Instant::now();
        body(self)?;
        Ok(start.elapsed())
    }
}
