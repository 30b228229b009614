use crate::{
    Activation, AttnSpec, Precision, RopeSpec, Weights, act_mul, add_rms_norm, attention, embedding, linear,
    norm_rope, rms_norm,
};

/// A decoder-only transformer of the Llama family: pre-norm, rotary positions, grouped queries, gated
/// feed-forward.
#[derive(Clone, Debug)]
pub struct DecoderSpec {
    /// Elements of the residual stream.
    pub hidden: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Elements of the feed-forward layer.
    pub ffn: usize,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Added to the mean square in every norm.
    pub eps: f64,
    /// Positions.
    pub rope: RopeSpec,
    /// Whether q, k and v have biases (Qwen2).
    pub qkv_bias: bool,
    /// Whether each query and key head is normalised before rotation (Qwen3).
    pub qk_norm: bool,
    /// Whether the embedding is the output projection, too.
    pub tied: bool,
    /// The gate's activation.
    pub activation: Activation,
    /// The sliding window of each layer; one entry a layer.
    pub windows: Vec<Option<usize>>,
}

/// A whole model by full recompute: the end-to-end oracle.
#[derive(Clone, Debug)]
pub struct Decoder {
    /// Sizes and quirks.
    pub spec: DecoderSpec,
    /// Weights.
    pub weights: Weights,
    /// How every intermediate is stored. Logits are never rounded to 16 bits: they keep the accumulator's f32.
    pub precision: Precision,
}

impl Decoder {
    /// `[tokens, vocab]`: the logits after each token.
    pub fn logits(&self, tokens: &[u32]) -> Vec<Vec<f64>> {
        let hidden = self.hidden_states(tokens);
        self.project(&hidden).chunks_exact(self.spec.vocab).map(<[f64]>::to_vec).collect()
    }

    /// `[vocab]`: the logits after the last token.
    pub fn last_logits(&self, tokens: &[u32]) -> Vec<f64> {
        let hidden = self.hidden_states(tokens);
        self.project(&hidden[hidden.len() - self.spec.hidden..])
    }

    /// The `n` most likely tokens after `prompt`, one after the other, each by recomputing all before it.
    pub fn greedy(&self, prompt: &[u32], n: usize) -> Vec<u32> {
        let mut tokens = prompt.to_vec();
        for _ in 0..n {
            tokens.push(argmax(&self.last_logits(&tokens)).expect("a finite logit"));
        }
        tokens.split_off(prompt.len())
    }

    /// For each token of `output`, how far its logit is below the largest when it follows `prompt` and the
    /// tokens before it: 0 where greedy decoding takes it. One pass, whatever the length, so the way to check
    /// long outputs; a token that ties with a lower id gets the smallest positive number.
    pub fn greedy_gaps(&self, prompt: &[u32], output: &[u32]) -> Vec<f64> {
        let tokens = [prompt, output].concat();
        let logits = self.logits(&tokens[..tokens.len() - 1]);
        let gap = |(row, &token): (&Vec<f64>, &u32)| {
            let best = argmax(row).expect("a finite logit");
            let gap = row[best as usize] - row[token as usize];
            if best == token { 0.0 } else { gap.max(f64::MIN_POSITIVE) }
        };
        logits[prompt.len() - 1..].iter().zip(output).map(gap).collect()
    }

    /// `[tokens, hidden]`: the residual stream after the last norm.
    fn hidden_states(&self, tokens: &[u32]) -> Vec<f64> {
        let Self { spec, weights, precision } = self;
        let &DecoderSpec { hidden, ffn, head_dim, eps, .. } = spec;
        assert!(!tokens.is_empty(), "logits of no token");
        assert_eq!((weights.layers.len(), spec.windows.len()), (spec.layers, spec.layers), "layers");
        let p = *precision;
        let positions: Vec<u32> = (0..tokens.len() as u32).collect();
        let mut rope = spec.rope.table(tokens.len());
        rope.iter_mut().for_each(|x| *x = p.register(*x));

        let mut residual = embedding(&weights.embed, hidden, tokens);
        p.store_all(&mut residual);
        let mut down: Option<Vec<f64>> = None;
        for (layer, &window) in weights.layers.iter().zip(&spec.windows) {
            let mut normed;
            match down.take() {
                None => normed = rms_norm(&residual, &layer.input_norm, eps, p),
                Some(down) => (normed, residual) = add_rms_norm(&residual, &down, &layer.input_norm, eps, p),
            }
            let project = |weight: &[f32], i: usize| {
                linear(&normed, weight, layer.qkv_bias.as_ref().map(|bias| bias[i].as_slice()), hidden, p)
            };
            let (q, k, v) = (project(&layer.q, 0), project(&layer.k, 1), project(&layer.v, 2));
            let norm = |i: usize| layer.qk_norm.as_ref().map(|norm| norm[i].as_slice());
            let q = norm_rope(&q, head_dim, norm(0), eps, &rope, &positions, p);
            let k = norm_rope(&k, head_dim, norm(1), eps, &rope, &positions, p);
            let attn = AttnSpec {
                num_heads: spec.heads,
                num_kv_heads: spec.kv_heads,
                head_dim,
                scale: 1.0 / (head_dim as f64).sqrt(),
                window,
            };
            let mixed = attention(&q, &k, &v, &attn, p);
            let mixed = linear(&mixed, &layer.o, None, spec.heads * head_dim, p);
            (normed, residual) = add_rms_norm(&residual, &mixed, &layer.post_norm, eps, p);

            let gate = linear(&normed, &layer.gate, None, hidden, p);
            let up = linear(&normed, &layer.up, None, hidden, p);
            let rows = gate.chunks_exact(ffn).zip(up.chunks_exact(ffn));
            let gate_up: Vec<f64> = rows.flat_map(|(gate, up)| [gate, up].concat()).collect();
            let act = act_mul(&gate_up, ffn, spec.activation, p);
            down = Some(linear(&act, &layer.down, None, ffn, p));
        }
        match down {
            None => rms_norm(&residual, &weights.norm, eps, p),
            Some(down) => add_rms_norm(&residual, &down, &weights.norm, eps, p).0,
        }
    }

    fn project(&self, hidden: &[f64]) -> Vec<f64> {
        let precision = if self.precision == Precision::F64 { Precision::F64 } else { Precision::F32 };
        let head = self.weights.lm_head.as_ref().unwrap_or(&self.weights.embed);
        linear(hidden, head, None, self.spec.hidden, precision)
    }
}

/// The index of the largest element, ties to the lowest; NaN and minus infinity never win.
pub fn argmax(x: &[f64]) -> Option<u32> {
    let mut best: Option<usize> = None;
    for (i, &value) in x.iter().enumerate() {
        if value > best.map_or(f64::NEG_INFINITY, |best| x[best]) {
            best = Some(i);
        }
    }
    best.map(|best| best as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RopeScaling, philox4x32_10};

    fn spec() -> DecoderSpec {
        DecoderSpec {
            hidden: 24,
            layers: 2,
            heads: 6,
            kv_heads: 2,
            head_dim: 8,
            ffn: 40,
            vocab: 31,
            eps: 1e-6,
            rope: RopeSpec { head_dim: 8, theta: 1e4, scaling: RopeScaling::Default },
            qkv_bias: true,
            qk_norm: true,
            tied: false,
            activation: Activation::Silu,
            windows: vec![None, Some(3)],
        }
    }

    fn random(spec: DecoderSpec, precision: Precision) -> Decoder {
        let mut salt = 0;
        let weights = Weights::collect(&spec, |_, shape| {
            salt += 1;
            let bits = |i: usize| philox4x32_10([i as u32, salt, 0, 0], [3, 4])[0];
            (0..shape.iter().product()).map(|i| bits(i) as f32 / 2f32.powi(31) - 1.0).collect()
        });
        Decoder { spec, weights, precision }
    }

    /// Without layers the model is `lm_head(norm(embed))`.
    #[test]
    fn by_hand_without_layers() {
        let spec =
            DecoderSpec { hidden: 2, layers: 0, vocab: 3, tied: true, windows: vec![], eps: 0.0, ..spec() };
        let weights = Weights {
            embed: vec![3.0, 4.0, 1.0, 0.0, 0.0, 1.0],
            layers: vec![],
            norm: vec![1.0, 2.0],
            lm_head: None,
        };
        let decoder = Decoder { spec, weights, precision: Precision::F64 };
        let (a, b) = (3.0 / 12.5f64.sqrt(), 8.0 / 12.5f64.sqrt());
        for (found, expected) in decoder.last_logits(&[1, 0]).iter().zip([3.0 * a + 4.0 * b, a, b]) {
            assert!((found - expected).abs() < 1e-14);
        }
        assert_eq!(decoder.greedy(&[0], 2), [0, 0]);
    }

    /// One layer whose weights are identities and zeros: attention copies the values' mean, the feed-forward part
    /// adds nothing.
    #[test]
    fn by_hand_one_layer() {
        let spec = DecoderSpec {
            hidden: 2,
            layers: 1,
            heads: 1,
            kv_heads: 1,
            head_dim: 2,
            ffn: 1,
            vocab: 2,
            eps: 0.0,
            rope: RopeSpec { head_dim: 2, theta: 1e4, scaling: RopeScaling::Default },
            qkv_bias: false,
            qk_norm: false,
            tied: true,
            activation: Activation::Silu,
            windows: vec![None],
        };
        let identity = vec![1.0, 0.0, 0.0, 1.0];
        let weights = Weights::collect(&spec, |name, shape| match name {
            "model.embed_tokens.weight" | "model.layers.0.self_attn.v_proj.weight" => identity.clone(),
            "model.layers.0.self_attn.o_proj.weight" => identity.clone(),
            _ if name.contains("norm") => vec![1.0; shape.iter().product()],
            _ => vec![0.0; shape.iter().product()],
        });
        let decoder = Decoder { spec, weights, precision: Precision::F64 };
        // Norms of (1, 0) and (0, 1) are (r, 0) and (0, r) with r = sqrt 2; the second query sees both values with
        // weight a half each: (r/2, r/2). The residual is (r/2, 1 + r/2); the last norm divides by its rms.
        let r = 2f64.sqrt();
        let residual = [r / 2.0, 1.0 + r / 2.0];
        let rms = ((residual[0].powi(2) + residual[1].powi(2)) / 2.0).sqrt();
        for (found, expected) in decoder.last_logits(&[0, 1]).iter().zip(residual) {
            assert!((found - expected / rms).abs() < 1e-14, "{found}");
        }
    }

    #[test]
    fn logits_depend_on_the_past_alone_and_greedy_follows_them() {
        let decoder = random(spec(), Precision::F64);
        let tokens = [3, 30, 0, 7, 7, 12];
        let logits = decoder.logits(&tokens);
        for n in 1..=tokens.len() {
            let last = decoder.last_logits(&tokens[..n]);
            assert!(last.iter().zip(&logits[n - 1]).all(|(a, b)| (a - b).abs() < 1e-12));
        }
        let output = decoder.greedy(&tokens, 5);
        assert_eq!(decoder.greedy_gaps(&tokens, &output), [0.0; 5]);
        let mut wrong = output.clone();
        wrong[2] = (wrong[2] + 1) % 31;
        let gaps = decoder.greedy_gaps(&tokens, &wrong);
        assert!(gaps[1] == 0.0 && gaps[2] > 0.0, "{gaps:?}");
    }

    #[test]
    fn every_quirk_changes_the_logits() {
        let tokens = [3, 30, 0, 7, 7, 12];
        let base = random(spec(), Precision::F64).last_logits(&tokens);
        let changed = |decoder: Decoder| {
            let logits = decoder.last_logits(&tokens);
            assert!(logits.iter().zip(&base).any(|(a, b)| (a - b).abs() > 1e-3));
        };
        let with = |change: &dyn Fn(&mut DecoderSpec)| {
            let mut decoder = random(spec(), Precision::F64);
            change(&mut decoder.spec);
            decoder
        };
        changed(with(&|spec| spec.windows = vec![None, None]));
        changed(with(&|spec| spec.activation = Activation::GeluTanh));
        changed(with(&|spec| spec.rope.theta = 1e2));
        changed(with(&|spec| spec.eps = 0.1));
        let mut decoder = random(spec(), Precision::F64);
        decoder.weights.lm_head = None;
        changed(decoder);
        let mut decoder = random(spec(), Precision::F64);
        decoder.weights.layers[1].qkv_bias = None;
        changed(decoder);
        let mut decoder = random(spec(), Precision::F64);
        decoder.weights.layers[0].qk_norm = None;
        changed(decoder);
    }

    #[test]
    fn coarser_precision_is_further_from_the_oracle() {
        let error = |precision| {
            let oracle = random(spec(), Precision::F64).last_logits(&[1, 2, 3]);
            let logits = random(spec(), precision).last_logits(&[1, 2, 3]);
            logits.iter().zip(oracle).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
        };
        let [f32, f16, bf16] = [Precision::F32, Precision::F16, Precision::Bf16].map(error);
        assert!(0.0 < f32 && f32 < f16 && f16 < bf16, "{f32} {f16} {bf16}");
    }
}
