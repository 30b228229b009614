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
    /// Room for the normalised input of a projection, `[_, hidden]`.
    normed: Tensor<B::Buf>,
    /// Room for what a block adds to the residual stream, `[_, hidden]`.
    delta: Tensor<B::Buf>,
    /// `[_, (num_heads + 2 * num_kv_heads) * head_dim]`.
    qkv: Tensor<B::Buf>,
    /// `[_, num_heads * head_dim]`.
    attn_out: Tensor<B::Buf>,
    /// Room for gates and ups, `[_, 2 * ffn]`.
    gate_up: Tensor<B::Buf>,
    /// `[_, ffn]`.
    ffn: Tensor<B::Buf>,
    /// Rows of the residual stream to sample from, `[max_samples, hidden]`.
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
            let (spec, plan) = &self.attn[self.attn_of_layer[layer]];
            let (q_norm, k_norm) = (w.q_norm.as_ref(), w.k_norm.as_ref());
            let qkv_bias = w.qkv_bias.as_ref();
            b.norm_linear(
                &mut act.qkv,
                &mut act.normed,
                &act.residual,
                &w.attn_norm,
                eps,
                &w.qkv,
                qkv_bias,
                num_tokens,
            )?;
            b.rope_attention(
                &mut act.attn_out,
                &mut act.qkv,
                q_norm,
                k_norm,
                eps,
                &self.rope,
                &mut kv[layer],
                inputs,
                state,
                plan,
                spec,
            )?;
            let o_bias = w.o_bias.as_ref();
            b.linear_add(&mut act.residual, &mut act.delta, &act.attn_out, &w.o, o_bias, num_tokens)?;
            gated_ffn(b, act, w, self.spec.activation, eps, num_tokens)?;
        }
        // The norm of the last layer's output is wanted for the rows to sample from only.
        b.gather_samples(&mut act.last, &act.residual, inputs)?;
        let head = self.weights.lm_head.as_ref().unwrap_or(&self.weights.embedding);
        let norm = &self.weights.final_norm;
        b.norm_linear(&mut act.logits, &mut act.normed, &act.last, norm, eps, head, None, num_samples)?;
        Ok(&act.logits)
    }
}

/// `residual += down(act(gate(norm(residual))) * up(norm(residual)))`.
fn gated_ffn<B: Backend>(
    b: &mut B,
    act: &mut Activations<B>,
    w: &LayerWeights<B>,
    activation: minisgl_kernels::Activation,
    eps: f32,
    num_tokens: usize,
) -> Result<()> {
    b.norm_gated_linear(
        &mut act.ffn,
        &mut act.normed,
        &mut act.gate_up,
        &act.residual,
        &w.ffn_norm,
        eps,
        &w.gate_up,
        w.gate_up_bias.as_ref(),
        activation,
        num_tokens,
    )?;
    b.linear_add(&mut act.residual, &mut act.delta, &act.ffn, &w.down, w.down_bias.as_ref(), num_tokens)
}
