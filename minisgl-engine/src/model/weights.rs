//! The weights of a decoder on the device, with q/k/v and gate/up merged.

use std::collections::BTreeSet;

use minisgl_kernels::{Backend, DType, Tensor};

use super::checkpoint::Checkpoint;
use super::spec::ModelSpec;
use crate::engine::LoadProgress;
use crate::{EngineError, Result};

/// All weights of a decoder.
pub(crate) struct Weights<B: Backend> {
    /// `[vocab, hidden]`.
    pub(crate) embedding: Tensor<B::Buf>,
    pub(crate) layers: Vec<LayerWeights<B>>,
    /// `[1, hidden]`.
    pub(crate) final_norm: Tensor<B::Buf>,
    /// `[vocab, hidden]`; `None` where the embedding table serves.
    pub(crate) lm_head: Option<Tensor<B::Buf>>,
}

/// The weights of one layer. A projection is `[outputs, inputs]`, a bias or norm `[1, n]`.
pub(crate) struct LayerWeights<B: Backend> {
    pub(crate) attn_norm: Tensor<B::Buf>,
    pub(crate) qkv: Tensor<B::Buf>,
    pub(crate) qkv_bias: Option<Tensor<B::Buf>>,
    pub(crate) q_norm: Option<Tensor<B::Buf>>,
    pub(crate) k_norm: Option<Tensor<B::Buf>>,
    pub(crate) o: Tensor<B::Buf>,
    pub(crate) o_bias: Option<Tensor<B::Buf>>,
    pub(crate) ffn_norm: Tensor<B::Buf>,
    pub(crate) gate_up: Tensor<B::Buf>,
    pub(crate) gate_up_bias: Option<Tensor<B::Buf>>,
    pub(crate) down: Tensor<B::Buf>,
    pub(crate) down_bias: Option<Tensor<B::Buf>>,
}

/// Where weights come from.
pub(crate) enum WeightSource<'a> {
    /// The tensors of a checkpoint.
    Checkpoint(&'a Checkpoint),
    /// Noise with the spread of a trained model's initialisation.
    Dummy { seed: u64 },
}

impl<B: Backend> Weights<B> {
    /// Loads everything that `spec` asks for.
    ///
    /// # Errors
    /// Names each tensor that is missing, has another shape or dtype, or that nothing asks for.
    pub(crate) fn load(
        backend: &mut B,
        spec: &ModelSpec,
        dtype: DType,
        source: &WeightSource<'_>,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self> {
        let mut loader = Loader {
            backend,
            dtype,
            source,
            used: BTreeSet::new(),
            loaded_bytes: 0,
            total_bytes: spec.weight_bytes(dtype),
            progress,
        };
        let weights = loader.all(spec)?;
        loader.finish(spec)?;
        Ok(weights)
    }
}

struct Loader<'a, B: Backend> {
    backend: &'a mut B,
    dtype: DType,
    source: &'a WeightSource<'a>,
    used: BTreeSet<String>,
    loaded_bytes: usize,
    total_bytes: usize,
    progress: &'a mut dyn FnMut(LoadProgress),
}

impl<B: Backend> Loader<'_, B> {
    fn all(&mut self, spec: &ModelSpec) -> Result<Weights<B>> {
        let table = [spec.vocab];
        let embedding = self.matrix(&["model.embed_tokens.weight".into()], &table, spec.hidden)?;
        let layers = (0..spec.num_layers).map(|layer| self.layer(spec, layer)).collect::<Result<_>>()?;
        let final_norm = self.norm("model.norm.weight", spec.hidden)?;
        let lm_head = match spec.tied {
            true => None,
            false => Some(self.matrix(&["lm_head.weight".into()], &table, spec.hidden)?),
        };
        Ok(Weights { embedding, layers, final_norm, lm_head })
    }

    fn layer(&mut self, spec: &ModelSpec, layer: usize) -> Result<LayerWeights<B>> {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let (q, kv) = (spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim);
        let projection = |part: &str, kind: &str| name(&format!("{part}_proj.{kind}"));
        let attn = |kind| ["self_attn.q", "self_attn.k", "self_attn.v"].map(|part| projection(part, kind));
        let gate_up = |kind| ["mlp.gate", "mlp.up"].map(|part| projection(part, kind));
        let ffn = spec.ffn;
        Ok(LayerWeights {
            attn_norm: self.norm(&name("input_layernorm.weight"), spec.hidden)?,
            qkv: self.matrix(&attn("weight"), &[q, kv, kv], spec.hidden)?,
            qkv_bias: self.bias(spec.qkv_bias, &attn("bias"), &[q, kv, kv])?,
            q_norm: match spec.qk_norm {
                true => Some(self.norm(&name("self_attn.q_norm.weight"), spec.head_dim)?),
                false => None,
            },
            k_norm: match spec.qk_norm {
                true => Some(self.norm(&name("self_attn.k_norm.weight"), spec.head_dim)?),
                false => None,
            },
            o: self.matrix(&[projection("self_attn.o", "weight")], &[spec.hidden], q)?,
            o_bias: self.bias(spec.o_bias, &[projection("self_attn.o", "bias")], &[spec.hidden])?,
            ffn_norm: self.norm(&name("post_attention_layernorm.weight"), spec.hidden)?,
            gate_up: self.matrix(&gate_up("weight"), &[ffn, ffn], spec.hidden)?,
            gate_up_bias: self.bias(spec.mlp_bias, &gate_up("bias"), &[ffn, ffn])?,
            down: self.matrix(&[projection("mlp.down", "weight")], &[spec.hidden], ffn)?,
            down_bias: self.bias(spec.mlp_bias, &[projection("mlp.down", "bias")], &[spec.hidden])?,
        })
    }

    /// One matrix of `cols` columns from one tensor of `parts[i]` rows for each name.
    fn matrix(&mut self, names: &[String], parts: &[usize], cols: usize) -> Result<Tensor<B::Buf>> {
        let rows = parts.iter().sum();
        let mut tensor = self.backend.tensor("weights", self.dtype, rows, cols)?;
        match self.source {
            WeightSource::Checkpoint(checkpoint) => {
                let mut row = 0;
                for (name, &part) in names.iter().zip(parts) {
                    let (bytes, dtype) = checkpoint.tensor(name, &[part, cols])?;
                    self.backend.load_rows(&mut tensor, row, bytes, dtype)?;
                    self.used.insert(name.clone());
                    row += part;
                }
            }
            WeightSource::Dummy { seed } => {
                let seed = seed.wrapping_add(self.loaded_bytes as u64);
                // Xavier-like, so that activations neither vanish nor overflow through the layers.
                let std = (1.0 / cols as f32).sqrt();
                self.backend.fill_random(&mut tensor, 0.0, std, seed)?;
            }
        }
        self.report(&tensor);
        Ok(tensor)
    }

    /// A vector of the concatenated tensors, where the model has them.
    fn bias(&mut self, present: bool, names: &[String], parts: &[usize]) -> Result<Option<Tensor<B::Buf>>> {
        if !present {
            return Ok(None);
        }
        self.vector(names, parts, 0.0).map(Some)
    }

    fn norm(&mut self, name: &str, len: usize) -> Result<Tensor<B::Buf>> {
        self.vector(&[name.to_owned()], &[len], 1.0)
    }

    fn vector(&mut self, names: &[String], parts: &[usize], dummy_mean: f32) -> Result<Tensor<B::Buf>> {
        let mut tensor = self.backend.tensor("weights", self.dtype, 1, parts.iter().sum())?;
        match self.source {
            WeightSource::Checkpoint(checkpoint) => {
                // A row is loaded whole, and one file's tensors may differ in dtype: widen, then join.
                let mut joined: Vec<u8> = Vec::new();
                for (name, &part) in names.iter().zip(parts) {
                    let (bytes, dtype) = checkpoint.tensor(name, &[part])?;
                    joined.extend(dtype.widen(bytes).iter().flat_map(|x| x.to_le_bytes()));
                    self.used.insert(name.clone());
                }
                self.backend.load_rows(&mut tensor, 0, &joined, DType::F32)?;
            }
            WeightSource::Dummy { seed } => {
                let seed = seed.wrapping_add(self.loaded_bytes as u64);
                self.backend.fill_random(&mut tensor, dummy_mean, 0.02, seed)?;
            }
        }
        self.report(&tensor);
        Ok(tensor)
    }

    fn report(&mut self, tensor: &Tensor<B::Buf>) {
        self.loaded_bytes += tensor.size_bytes();
        (self.progress)(LoadProgress { loaded_bytes: self.loaded_bytes, total_bytes: self.total_bytes });
    }

    /// Refuses a checkpoint with tensors that nothing asked for: weights left out in silence are wrong answers.
    fn finish(self, spec: &ModelSpec) -> Result<()> {
        let WeightSource::Checkpoint(checkpoint) = self.source else {
            return Ok(());
        };
        let expected = |name: &str| {
            self.used.contains(name)
                // A tied head may be stored again, and old Llama files store the rotary frequencies.
                || (spec.tied && name == "lm_head.weight")
                || name.ends_with(".rotary_emb.inv_freq")
        };
        let unexpected: Vec<_> = checkpoint.names().filter(|name| !expected(name)).collect();
        if unexpected.is_empty() {
            return Ok(());
        }
        let shown = unexpected.iter().take(5).copied().collect::<Vec<_>>().join(", ");
        Err(EngineError::Model(format!(
            "the checkpoint holds {} tensors that {} with this config.json does not have: {shown}{}",
            unexpected.len(),
            spec.architecture,
            if unexpected.len() > 5 { ", ..." } else { "" }
        )))
    }
}
