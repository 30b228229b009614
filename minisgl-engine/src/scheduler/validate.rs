use minisgl_kernels::MAX_LOGPROBS;

use super::SchedulerConfig;
use crate::error::{EngineError, Result};
use crate::request::{Request, RequestParams};

impl SchedulerConfig {
    /// Checks that `request` can be run to its end.
    ///
    /// # Errors
    /// Names the field, its value and what is allowed; [`EngineError::TooLarge`] for a prompt that the pool can
    /// never hold.
    pub fn validate(&self, request: &Request) -> Result<()> {
        let prompt = &request.token_ids;
        if prompt.is_empty() {
            return invalid("the prompt is empty: it must have at least one token".into());
        }
        if let Some(idx) = prompt.iter().position(|&id| id as usize >= self.vocab) {
            let (id, vocab) = (prompt[idx], self.vocab);
            return invalid(format!("token_ids[{idx}] is {id}, must be below the vocabulary of {vocab}"));
        }
        if prompt.len() >= self.max_seq_len {
            return invalid(format!(
                "the prompt has {} tokens, which leaves no room for an output: the longest sequence is {} tokens",
                prompt.len(),
                self.max_seq_len
            ));
        }
        let (page_size, available) = (self.page_size, self.num_pages);
        let needed = (prompt.len() + 1).div_ceil(page_size);
        if needed > available {
            return Err(EngineError::TooLarge { needed, available, page_size });
        }
        validate_params(&request.params, self.vocab)
    }
}

fn validate_params(params: &RequestParams, vocab: usize) -> Result<()> {
    let check =
        |name: &str, value: f32, range: &str, is_in_range: bool| match value.is_finite() && is_in_range {
            true => Ok(()),
            false => invalid(format!("{name} is {value}, must be {range}")),
        };
    let RequestParams { temperature, top_p, min_p, .. } = *params;
    let (presence, frequency) = (params.presence_penalty, params.frequency_penalty);
    let repetition = params.repetition_penalty;
    check("temperature", temperature, "a finite number, 0 or more", temperature >= 0.0)?;
    check("top_p", top_p, "above 0 and at most 1", top_p > 0.0 && top_p <= 1.0)?;
    check("min_p", min_p, "from 0 to 1", (0.0..=1.0).contains(&min_p))?;
    check("presence_penalty", presence, "from -2 to 2", (-2.0..=2.0).contains(&presence))?;
    check("frequency_penalty", frequency, "from -2 to 2", (-2.0..=2.0).contains(&frequency))?;
    check("repetition_penalty", repetition, "a finite number above 0", repetition > 0.0)?;
    if params.max_tokens == 0 {
        return invalid("max_tokens is 0, must be at least 1".into());
    }
    if let Some(num) = params.logprobs.filter(|&num| num > MAX_LOGPROBS) {
        return invalid(format!("logprobs is {num}, must be at most {MAX_LOGPROBS}"));
    }
    if let Some(idx) = params.stop_token_ids.iter().position(|&id| id as usize >= vocab) {
        let id = params.stop_token_ids[idx];
        return invalid(format!("stop_token_ids[{idx}] is {id}, must be below the vocabulary of {vocab}"));
    }
    Ok(())
}

fn invalid(message: String) -> Result<()> {
    Err(EngineError::InvalidRequest(message))
}
