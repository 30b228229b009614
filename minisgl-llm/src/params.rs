use minisgl_engine::MAX_LOGPROBS;
use minisgl_engine::request::RequestParams;

/// How to continue a prompt.
///
/// ```
/// use minisgl_llm::SamplingParams;
///
/// let params = SamplingParams { temperature: 0.8, top_p: 0.95, max_tokens: 256, ..Default::default() };
/// assert!(params.validate().is_ok());
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy: the arg max, ties to the lowest id. Default 0.
    pub temperature: f32,
    /// Keep the k most likely tokens. Below 1: off; 1 is greedy. Default -1.
    pub top_k: i32,
    /// Keep the smallest set of most likely tokens whose probabilities sum to this, in (0, 1]; applied after
    /// `top_k` on the renormalised distribution. Default 1.
    pub top_p: f32,
    /// Drop tokens under this times the largest probability, in [0, 1]. Default 0.
    pub min_p: f32,
    /// New tokens, at least 1; clamped to the room that the model's length leaves. Default 1024.
    pub max_tokens: usize,
    /// Go on past the model's EOS ids. Default false.
    pub ignore_eos: bool,
    /// End on one of these strings, which is not part of the text. It may cross token borders.
    pub stop: Vec<String>,
    /// End on one of these ids, which like EOS is not part of the output.
    pub stop_token_ids: Vec<u32>,
    /// Subtracted from the logit of each token generated so far, in [-2, 2]. Default 0.
    pub presence_penalty: f32,
    /// Subtracted from a token's logit once for each time that it was generated, in [-2, 2]. Default 0.
    pub frequency_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt or output; above 0. Default 1.
    pub repetition_penalty: f32,
    /// Key of this request's random numbers: with it, what is drawn depends on the prompt and the params alone.
    /// Without it the key follows from the seed of the `LLM` and the number of the request.
    pub seed: Option<u64>,
    /// Report the log probability of each chosen token and of this many most likely tokens (0 to 20).
    pub logprobs: Option<usize>,
    /// Completions of the prompt, at least 1; they share the prompt's KV pages. Default 1.
    pub n: usize,
    /// Leave special tokens out of the text. Default true.
    pub skip_special_tokens: bool,
}

impl Default for SamplingParams {
    fn default() -> Self {
        let request = RequestParams::default();
        Self {
            temperature: request.temperature,
            top_k: request.top_k,
            top_p: request.top_p,
            min_p: request.min_p,
            max_tokens: request.max_tokens,
            ignore_eos: request.ignore_eos,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            presence_penalty: request.presence_penalty,
            frequency_penalty: request.frequency_penalty,
            repetition_penalty: request.repetition_penalty,
            seed: None,
            logprobs: None,
            n: 1,
            skip_special_tokens: true,
        }
    }
}

impl SamplingParams {
    /// Greedy decoding of at most `max_tokens` tokens.
    pub fn greedy(max_tokens: usize) -> Self {
        Self { max_tokens, ..Self::default() }
    }

    /// Checks every field that can be checked without a model.
    ///
    /// # Errors
    /// Names the first field at fault, its value and what is allowed.
    pub fn validate(&self) -> Result<(), String> {
        let range = |name: &str, value: f32, allowed: bool, expected: &str| {
            if value.is_finite() && allowed {
                Ok(())
            } else {
                Err(format!("{name} is {value}, expected {expected}"))
            }
        };
        let penalty = |name: &str, value: f32| {
            range(name, value, (-2.0..=2.0).contains(&value), "a number from -2 to 2")
        };
        range("temperature", self.temperature, self.temperature >= 0.0, "a finite number of at least 0")?;
        range("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "a number above 0, at most 1")?;
        range("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "a number from 0 to 1")?;
        penalty("presence_penalty", self.presence_penalty)?;
        penalty("frequency_penalty", self.frequency_penalty)?;
        range(
            "repetition_penalty",
            self.repetition_penalty,
            self.repetition_penalty > 0.0,
            "a finite number above 0",
        )?;
        if self.max_tokens == 0 {
            return Err("max_tokens is 0, expected at least 1".into());
        }
        if self.n == 0 {
            return Err("n is 0, expected at least 1".into());
        }
        if let Some(i) = self.stop.iter().position(String::is_empty) {
            return Err(format!("stop[{i}] is an empty string"));
        }
        match self.logprobs {
            Some(num) if num > MAX_LOGPROBS => {
                Err(format!("logprobs is {num}, expected at most {MAX_LOGPROBS}"))
            }
            _ => Ok(()),
        }
    }

    /// The part that needs no text, under the random key `seed`.
    pub(crate) fn request_params(&self, seed: u64) -> RequestParams {
        RequestParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            max_tokens: self.max_tokens,
            ignore_eos: self.ignore_eos,
            stop_token_ids: self.stop_token_ids.clone(),
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            repetition_penalty: self.repetition_penalty,
            seed,
            logprobs: self.logprobs,
        }
    }
}

/// A key that depends on `base` and `number` and on nothing else: the finaliser of SplitMix64 (Steele, Lea, Flood:
/// "Fast splittable pseudorandom number generators", OOPSLA 2014) over both. It is what a request without a
/// seed of its own draws with, `base` being the seed of the `LLM` and `number` counting its requests.
pub fn derive_seed(base: u64, number: u64) -> u64 {
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    mix(mix(base.wrapping_add(GOLDEN)).wrapping_add(number.wrapping_add(1).wrapping_mul(GOLDEN)))
}

/// The sampling params of one call: one for all prompts, or one per prompt.
#[derive(Clone, Debug)]
pub enum ParamsList {
    /// The same for every prompt.
    All(SamplingParams),
    /// One per prompt, in order.
    Each(Vec<SamplingParams>),
}

impl ParamsList {
    pub(crate) fn get(&self, index: usize) -> &SamplingParams {
        match self {
            ParamsList::All(params) => params,
            ParamsList::Each(list) => &list[index],
        }
    }

    /// The number of params where it must be the number of prompts.
    pub(crate) fn required_prompts(&self) -> Option<usize> {
        match self {
            ParamsList::All(_) => None,
            ParamsList::Each(list) => Some(list.len()),
        }
    }
}

impl From<SamplingParams> for ParamsList {
    fn from(params: SamplingParams) -> Self {
        ParamsList::All(params)
    }
}

impl From<&SamplingParams> for ParamsList {
    fn from(params: &SamplingParams) -> Self {
        ParamsList::All(params.clone())
    }
}

impl From<Vec<SamplingParams>> for ParamsList {
    fn from(list: Vec<SamplingParams>) -> Self {
        ParamsList::Each(list)
    }
}

impl From<&[SamplingParams]> for ParamsList {
    fn from(list: &[SamplingParams]) -> Self {
        ParamsList::Each(list.to_vec())
    }
}

impl From<&Vec<SamplingParams>> for ParamsList {
    fn from(list: &Vec<SamplingParams>) -> Self {
        ParamsList::Each(list.clone())
    }
}

impl<const N: usize> From<[SamplingParams; N]> for ParamsList {
    fn from(list: [SamplingParams; N]) -> Self {
        ParamsList::Each(list.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_out_of_range_is_named_with_its_value() {
        type Change = fn(&mut SamplingParams);
        let cases: &[(Change, &str)] = &[
            (|p| p.temperature = -0.5, "temperature is -0.5, expected a finite number of at least 0"),
            (|p| p.temperature = f32::NAN, "temperature is NaN"),
            (|p| p.temperature = f32::INFINITY, "temperature is inf"),
            (|p| p.top_p = 0.0, "top_p is 0, expected a number above 0, at most 1"),
            (|p| p.top_p = 1.5, "top_p is 1.5"),
            (|p| p.top_p = f32::NAN, "top_p is NaN"),
            (|p| p.min_p = -0.1, "min_p is -0.1"),
            (|p| p.min_p = 1.1, "min_p is 1.1"),
            (|p| p.presence_penalty = 2.5, "presence_penalty is 2.5"),
            (|p| p.frequency_penalty = -2.5, "frequency_penalty is -2.5"),
            (|p| p.frequency_penalty = f32::NEG_INFINITY, "frequency_penalty is -inf"),
            (|p| p.repetition_penalty = 0.0, "repetition_penalty is 0"),
            (|p| p.repetition_penalty = f32::NAN, "repetition_penalty is NaN"),
            (|p| p.max_tokens = 0, "max_tokens is 0, expected at least 1"),
            (|p| p.n = 0, "n is 0, expected at least 1"),
            (|p| p.stop = vec!["a".into(), String::new()], "stop[1] is an empty string"),
            (|p| p.logprobs = Some(21), "logprobs is 21, expected at most 20"),
        ];
        for (change, expected) in cases {
            let mut params = SamplingParams::default();
            change(&mut params);
            let why = params.validate().expect_err(expected);
            assert!(why.starts_with(expected), "{why}");
        }
    }

    #[test]
    fn borders_are_allowed() {
        let params = SamplingParams {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 1.0,
            presence_penalty: -2.0,
            frequency_penalty: 2.0,
            logprobs: Some(MAX_LOGPROBS),
            ..SamplingParams::default()
        };
        assert_eq!(params.validate(), Ok(()));
    }

    #[test]
    fn derived_seeds_differ() {
        let mut seeds: Vec<u64> =
            (0..100).flat_map(|base| (0..100).map(move |n| derive_seed(base, n))).collect();
        seeds.sort_unstable();
        seeds.dedup();
        assert_eq!(seeds.len(), 10_000);
    }
}
