//! The decoder: one forward pass that all families share (Touvron et al. 2023; Vaswani et al. 2017).

use minisgl_kernels::{AttnSpec, Backend, DType, KvLayer, Result, SeqState, Tensor};

use super::spec::ModelSpec;
use super::weights::{LayerWeights, Weights};

/// Largest step that a decoder has room for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DecoderSizes {
    pub(crate) max_tokens: usize,
    pub(crate) max_seqs: usize,
    pub(crate) max_samples: usize,
    pub(crate) max_position: usize,
    pub(crate) page_size: usize,
}

/// Weights, and room for the activations of the largest step.
pub(crate) struct Decoder<B: Backend> {
    weights: Weights<B>,
    spec: ModelSpec,
    /// `[max_position, head_dim]` f32.
    rope: Tensor<B::Buf>,
    /// Layers differ in their window alone: one entry for each window that occurs.
    attn: Vec<(AttnSpec, B::AttnPlan)>,
    /// Index into `attn` of each layer.
    attn_of_layer: Vec<usize>,
    act: Activations<B>,
}

/// Activations, `[max_tokens, _]` where not said otherwise.
struct Activations<B: Backend> {
    /// The residual stream, `[_, hidden]`.
    residual: Tensor<B::Buf>,
    /// Normalised input of a projection, `[_, hidden]`.
    normed: Tensor<B::Buf>,
    /// What a block adds to the residual stream, `[_, hidden]`.
    delta: Tensor<B::Buf>,
    /// `[_, (num_heads + 2 * num_kv_heads) * head_dim]`.
    qkv: Tensor<B::Buf>,
    /// `[_, num_heads * head_dim]`.
    attn_out: Tensor<B::Buf>,
    /// `[_, 2 * ffn]`.
    gate_up: Tensor<B::Buf>,
    /// `[_, ffn]`.
    ffn: Tensor<B::Buf>,
    /// Rows to sample from, `[max_samples, hidden]`.
    last: Tensor<B::Buf>,
    /// `[max_samples, vocab]`.
    logits: Tensor<B::Buf>,
}

impl<B: Backend> Decoder<B> {
    pub(crate) fn new(
        backend: &mut B,
        spec: &ModelSpec,
        dtype: DType,
        weights: Weights<B>,
        sizes: DecoderSizes,
    ) -> Result<Self> {
        let DecoderSizes { max_tokens, max_seqs, max_samples, max_position, page_size } = sizes;
        let table: Vec<u8> =
            spec.rope.table(spec.head_dim, max_position).iter().flat_map(|x| x.to_le_bytes()).collect();
        let mut rope = backend.tensor("rope table", DType::F32, max_position, spec.head_dim)?;
        backend.write(&mut rope.buf, 0, &table)?;

        let mut attn: Vec<(AttnSpec, B::AttnPlan)> = Vec::new();
        let mut attn_of_layer = Vec::new();
        for layer in 0..spec.num_layers {
            let sizes = spec.attn_spec(layer, page_size);
            let known = attn.iter().position(|(other, _)| *other == sizes);
            attn_of_layer.push(match known {
                Some(idx) => idx,
                None => {
                    let plan = backend.attn_plan(&sizes, max_tokens, max_seqs)?;
                    attn.push((sizes, plan));
                    attn.len() - 1
                }
            });
        }
        let sizes = spec.attn_spec(0, page_size);
        let mut act = |rows, cols| backend.tensor("activations", dtype, rows, cols);
        let act = Activations {
            residual: act(max_tokens, spec.hidden)?,
            normed: act(max_tokens, spec.hidden)?,
            delta: act(max_tokens, spec.hidden)?,
            qkv: act(max_tokens, sizes.qkv_cols())?,
            attn_out: act(max_tokens, sizes.q_cols())?,
            gate_up: act(max_tokens, 2 * spec.ffn)?,
            ffn: act(max_tokens, spec.ffn)?,
            last: act(max_samples, spec.hidden)?,
            logits: backend.tensor("logits", backend.logits_dtype(dtype), max_samples, spec.vocab)?,
        };
        Ok(Self { weights, spec: spec.clone(), rope, attn, attn_of_layer, act })
    }

    /// Runs the step in `inputs` and returns the logits, `[num_samples, vocab]`.
    pub(crate) fn forward(
        &mut self,
        b: &mut B,
        inputs: &B::Inputs,
        state: &SeqState<B::Buf>,
        kv: &mut [KvLayer<B::Buf>],
        num_tokens: usize,
        num_samples: usize,
    ) -> Result<&Tensor<B::Buf>> {
        let eps = self.spec.eps;
        let act = &mut self.act;
        for (spec, plan) in &mut self.attn {
            b.plan_attention(plan, inputs, spec)?;
        }
        b.embedding(&mut act.residual, &self.weights.embedding, inputs, state)?;
        for (layer, w) in self.weights.layers.iter().enumerate() {
            // The block before left its output beside the residual stream: adding it is fused with the norm.
            match layer {
                0 => b.rms_norm(&mut act.normed, &act.residual, &w.attn_norm, eps, num_tokens)?,
                _ => add_norm(b, act, &w.attn_norm, eps, num_tokens)?,
            }
            let (spec, plan) = &self.attn[self.attn_of_layer[layer]];
            b.linear(&mut act.qkv, &act.normed, &w.qkv, w.qkv_bias.as_ref(), num_tokens)?;
            let (q_norm, k_norm) = (w.q_norm.as_ref(), w.k_norm.as_ref());
            b.rope_store_kv(&mut act.qkv, q_norm, k_norm, eps, &self.rope, inputs, spec, &mut kv[layer])?;
            b.attention(&mut act.attn_out, &act.qkv, &kv[layer], inputs, state, plan, spec)?;
            b.linear(&mut act.delta, &act.attn_out, &w.o, w.o_bias.as_ref(), num_tokens)?;

            add_norm(b, act, &w.ffn_norm, eps, num_tokens)?;
            gated_ffn(b, act, w, self.spec.activation, num_tokens)?;
        }
        add_norm(b, act, &self.weights.final_norm, eps, num_tokens)?;
        b.gather_samples(&mut act.last, &act.normed, inputs)?;
        let head = self.weights.lm_head.as_ref().unwrap_or(&self.weights.embedding);
        b.linear(&mut act.logits, &act.last, head, None, num_samples)?;
        Ok(&act.logits)
    }
}

/// `residual += delta; normed = rms_norm(residual)`.
fn add_norm<B: Backend>(
    b: &mut B,
    act: &mut Activations<B>,
    weight: &Tensor<B::Buf>,
    eps: f32,
    num_tokens: usize,
) -> Result<()> {
    b.add_rms_norm(&mut act.normed, &mut act.residual, &act.delta, weight, eps, num_tokens)
}

/// `delta = down(act(gate(normed)) * up(normed))`.
fn gated_ffn<B: Backend>(
    b: &mut B,
    act: &mut Activations<B>,
    w: &LayerWeights<B>,
    activation: minisgl_kernels::Activation,
    num_tokens: usize,
) -> Result<()> {
    b.linear(&mut act.gate_up, &act.normed, &w.gate_up, w.gate_up_bias.as_ref(), num_tokens)?;
    b.act_mul(&mut act.ffn, &act.gate_up, activation, num_tokens)?;
    b.linear(&mut act.delta, &act.ffn, &w.down, w.down_bias.as_ref(), num_tokens)
}
