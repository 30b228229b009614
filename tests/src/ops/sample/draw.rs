use minisgl_kernels::SampleParams;
use minisgl_reference::{
    self as reference, Precision, argmax, draw, kept, log_softmax, penalized_logits, scores,
};

use crate::ops::support::Failure;

/// A row of the case with everything that its draw depends on.
pub(super) struct Draw {
    pub(super) params: SampleParams,
    pub(super) logits: Vec<f64>,
    pub(super) prompt: Vec<u32>,
    pub(super) generated: Vec<u32>,
}

impl Draw {
    pub(super) fn oracle(&self) -> reference::SampleParams {
        let p = &self.params;
        reference::SampleParams {
            temperature: p.temperature.into(),
            top_k: p.top_k,
            top_p: p.top_p.into(),
            min_p: p.min_p.into(),
            presence_penalty: p.presence_penalty.into(),
            frequency_penalty: p.frequency_penalty.into(),
            repetition_penalty: p.repetition_penalty.into(),
            seed: p.seed,
            position: p.position,
        }
    }

    /// The row's counts before the draw, as the device holds them.
    pub(super) fn counts(&self, vocab: usize) -> Vec<u16> {
        let mut counts = vec![0u16; vocab];
        self.prompt.iter().for_each(|&token| counts[token as usize] |= 0x8000);
        self.generated.iter().for_each(|&token| counts[token as usize] += 1);
        counts
    }

    /// Whether `token` may be the draw: the oracle's, or one that f32 arithmetic cannot tell from it.
    pub(super) fn check_token(&self, token: u32) -> Result<(), Failure> {
        let params = self.oracle();
        let logits = penalized_logits(&self.logits, &self.prompt, &self.generated, &params);
        let expected = draw(&logits, &params);
        if Some(token) == expected || (token == u32::MAX && expected.is_none()) {
            return Ok(());
        }
        let wrong = |why: &str| {
            Err(Failure::wrong(format!(
                "token {token}, the oracle drew {expected:?} ({why}); {:?}",
                self.params
            )))
        };
        let (Some(best), Some(&logit)) = (expected, logits.get(token as usize)) else {
            return wrong("not a token, or none expected");
        };
        if params.is_greedy() {
            // Logits are compared as they are: only penalties are arithmetic.
            let slack =
                if self.params.has_penalties() { self.penalty_error(logits[best as usize]) } else { 0.0 };
            if slack > 0.0 && logits[best as usize] - logit <= slack {
                return Ok(());
            }
            return wrong("greedy");
        }
        // f32 errors of scaled logits, of sums over the vocabulary and of two logarithms, each some roundings.
        let error = 16.0 * f64::from(f32::EPSILON);
        let penalty_error = if self.params.has_penalties() {
            self.penalty_error(logit.abs().max(logits[best as usize].abs())) / params.temperature
        } else {
            0.0
        };
        let slack = error + penalty_error;
        if !kept(&logits, &params, slack)[token as usize] {
            return wrong("not kept");
        }
        let (scores, must_keep) = (scores(&logits, &params), kept(&logits, &params, -slack));
        let certain = scores.iter().zip(&must_keep).filter(|(_, kept)| **kept).map(|(score, _)| *score);
        let best_score = certain.fold(f64::NEG_INFINITY, f64::max);
        let score = scores[token as usize];
        let magnitude = 1.0 + (logit / params.temperature).abs() + score.abs().max(best_score.abs());
        if best_score - score <= slack * magnitude {
            return Ok(());
        }
        wrong(&format!("score {score}, best {best_score}"))
    }

    /// What three penalties in f32 may be off.
    fn penalty_error(&self, logit: f64) -> f64 {
        let p = &self.params;
        let counted = f64::from(p.frequency_penalty.abs()) * self.generated.len() as f64;
        4.0 * f64::from(f32::EPSILON) * (logit.abs() + counted + f64::from(p.presence_penalty.abs()))
    }

    /// Log probabilities of the raw logits: values within f32 rounding, the order of tokens exactly.
    pub(super) fn check_logprobs(
        &self,
        token: u32,
        logprob: f32,
        top_tokens: &[u32],
        top: &[f32],
    ) -> Result<(), Failure> {
        let Some(best) = argmax(&self.logits) else { return Ok(()) };
        let (exact, naive) =
            (log_softmax(&self.logits, Precision::F64), log_softmax(&self.logits, Precision::F32));
        let differences = exact.iter().zip(&naive).filter(|(e, _)| e.is_finite()).map(|(e, n)| (e - n).abs());
        let naive_error = differences.fold(0.0, f64::max);
        // The logit, the largest logit and the logarithm of the sum are each rounded once or twice.
        let scale = |t: usize| self.logits[t].abs() + self.logits[best as usize].abs() + exact[t].abs() + 1.0;
        let check = |what: &str, token: usize, found: f32| {
            let bound = 2.0 * naive_error + 2.0 * f64::from(f32::EPSILON) * scale(token);
            if (f64::from(found) - exact[token]).abs() <= bound {
                return Ok(());
            }
            let expected = exact[token];
            Err(Failure::wrong(format!(
                "{what} of token {token} is {found}, the oracle says {expected} +- {bound:.2e}"
            )))
        };
        check("log probability", token as usize, logprob)?;
        let mut order: Vec<u32> = (0..self.logits.len() as u32).collect();
        order.retain(|&t| self.logits[t as usize].is_finite());
        order.sort_by(|&a, &b| self.logits[b as usize].total_cmp(&self.logits[a as usize]).then(a.cmp(&b)));
        let wanted = order.len().min(self.params.num_logprobs as usize);
        if top_tokens[..wanted] != order[..wanted] {
            let found = &top_tokens[..wanted];
            return Err(Failure::wrong(format!("top tokens are {found:?}, expected {:?}", &order[..wanted])));
        }
        for (&token, &found) in order[..wanted].iter().zip(top) {
            check("top log probability", token as usize, found)?;
        }
        Ok(())
    }
}
