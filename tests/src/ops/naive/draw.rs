use minisgl_kernels::SampleParams;
use minisgl_reference as reference;

use super::{Fault, Naive};

impl Naive {
    /// Draws the token of sample `index` from one row of logits.
    pub(super) fn draw(
        &self,
        row: &[f64],
        prompt: &[u32],
        generated: &[u32],
        sample: &SampleParams,
        index: usize,
    ) -> Option<u32> {
        let mut params = reference::SampleParams {
            temperature: sample.temperature.into(),
            top_k: sample.top_k,
            top_p: sample.top_p.into(),
            min_p: sample.min_p.into(),
            presence_penalty: sample.presence_penalty.into(),
            frequency_penalty: sample.frequency_penalty.into(),
            repetition_penalty: sample.repetition_penalty.into(),
            seed: sample.seed,
            position: sample.position,
        };
        if self.has(Fault::SampleNanWins) && row.iter().any(|x| x.is_nan()) {
            return row.iter().position(|x| x.is_nan()).map(|i| i as u32);
        }
        if self.has(Fault::SampleNoiseByRow) {
            params.seed ^= index as u64;
        }
        let mut generated = generated.to_vec();
        if self.has(Fault::SamplePenaltyOnPrompt) {
            generated.extend(prompt);
        }
        let logits = reference::penalized_logits(row, prompt, &generated, &params);
        if params.is_greedy() && self.has(Fault::SampleTieToHighest) {
            let best = reference::argmax(&logits)? as usize;
            return logits.iter().rposition(|&x| x == logits[best]).map(|i| i as u32);
        }
        if params.is_greedy() {
            return reference::argmax(&logits);
        }
        let off = reference::SampleParams { top_k: -1, top_p: 1.0, min_p: 0.0, ..params };
        let mut sets = vec![reference::kept(&logits, &params, 0.0)];
        if self.has(Fault::SampleTopPBeforeTopK) {
            sets = vec![
                reference::kept(&logits, &reference::SampleParams { top_k: params.top_k, ..off }, 0.0),
                reference::kept(&logits, &reference::SampleParams { top_p: params.top_p, ..off }, 0.0),
                reference::kept(&logits, &reference::SampleParams { min_p: params.min_p, ..off }, 0.0),
            ];
        }
        if self.has(Fault::SampleMinPBeforeTemperature) {
            let cold = reference::SampleParams { min_p: params.min_p, temperature: 1.0, ..off };
            let rest = reference::SampleParams { min_p: 0.0, ..params };
            sets = vec![reference::kept(&logits, &rest, 0.0), reference::kept(&logits, &cold, 0.0)];
        }
        if self.has(Fault::SampleDropsTies) && params.top_k > 0 {
            let mut order: Vec<usize> = (0..logits.len()).collect();
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
            let mut first = vec![false; logits.len()];
            order.iter().take(params.top_k as usize).for_each(|&t| first[t] = true);
            sets.push(first);
        }
        let mut scores = reference::scores(&logits, &params);
        for (token, score) in scores.iter_mut().enumerate() {
            if !sets.iter().all(|set| set[token]) {
                *score = f64::NEG_INFINITY;
            }
        }
        reference::argmax(&scores)
    }
}
