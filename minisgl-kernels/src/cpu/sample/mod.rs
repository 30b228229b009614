//! Drawing tokens, without sorting the vocabulary.

mod cut;
mod logprobs;
pub(super) mod noise;
mod row;

use std::sync::atomic::{AtomicUsize, Ordering};

use super::buf::Buf;
use super::check::{Disjoint, equal, names, numbers, numbers_mut, rows};
use super::inputs::{PROMPT_BIT, count_token};
use super::scratch::lock;
use super::simd::{Element, Kernel, Simd, dispatch};
use super::{Cpu, CpuInputs, check, with_element};
use crate::{KernelError, MAX_LOGPROBS, PADDING, Result, SampleBuf, SampleParams, SeqState, Tensor};

const OP: &str = "sample";

pub(super) fn sample(
    cpu: &Cpu,
    out: &mut SampleBuf<Buf>,
    logits: &Tensor<Buf>,
    inputs: &CpuInputs,
    state: &mut SeqState<Buf>,
) -> Result<()> {
    let (isa, thread_scratch) = (cpu.isa, &cpu.thread_scratch);
    let (num_samples, vocab) = (inputs.num_samples(), logits.cols);
    equal(OP, "logits.cols against state.vocab", state.vocab, vocab)?;
    if num_samples > out.max_samples {
        let (expected, found) = (num_samples, out.max_samples);
        return Err(KernelError::Shape { op: OP, what: "out.max_samples", expected, found });
    }
    for params in inputs.samples.iter().filter(|params| params.seq_row != PADDING) {
        check::below(OP, "samples.seq_row", state.max_rows, params.seq_row as usize)?;
    }
    let counts = numbers::<u16>(OP, "state.token_counts", &state.token_counts, state.max_rows * vocab)?;
    let tokens = numbers_mut::<u32>(OP, "out.tokens", &mut out.tokens, num_samples)?;
    let logprobs = numbers_mut::<f32>(OP, "out.logprobs", &mut out.logprobs, num_samples)?;
    let top_len = num_samples * MAX_LOGPROBS;
    let top_tokens = numbers_mut::<u32>(OP, "out.top_tokens", &mut out.top_tokens, top_len)?;
    let top_logprobs = numbers_mut::<f32>(OP, "out.top_logprobs", &mut out.top_logprobs, top_len)?;
    {
        let (tokens, logprobs) = (Disjoint::new(tokens), Disjoint::new(logprobs));
        let (top_tokens, top_logprobs) = (Disjoint::new(top_tokens), Disjoint::new(top_logprobs));
        with_element!(logits.dtype, E => {
            let logits = rows::<E>(names!(OP, "logits"), logits, num_samples, vocab)?;
            let draw = |thread: usize, i: usize| {
                let params = &inputs.samples[i];
                if params.seq_row == PADDING {
                    return;
                }
                let logits = &logits[i * vocab..(i + 1) * vocab];
                let counts = params.has_penalties().then(|| &counts[params.seq_row as usize * vocab..][..vocab]);
                let mut scratch = lock(&thread_scratch[thread]);
                let (x, weights) = scratch.work.get(2 * vocab).split_at_mut(vocab);
                let any_finite = dispatch(isa, LoadLogits { src: logits, dst: x });
                // SAFETY: the entries of a sample are written by the thread that draws it.
                let (token, logprob, top_tokens, top_logprobs) = unsafe {
                    (
                        &mut tokens.get(i, 1)[0],
                        &mut logprobs.get(i, 1)[0],
                        top_tokens.get(i * MAX_LOGPROBS, MAX_LOGPROBS),
                        top_logprobs.get(i * MAX_LOGPROBS, MAX_LOGPROBS),
                    )
                };
                let log_sum = usize::try_from(params.num_logprobs).ok().map(|count| {
                    let (log_sum, top) = dispatch(isa, LogProbs { any_finite, x, weights, count });
                    for (j, (token, logit)) in top.into_iter().enumerate() {
                        (top_tokens[j], top_logprobs[j]) = (token, (f64::from(logit) - log_sum) as f32);
                    }
                    log_sum
                });
                let drawn = any_finite.then(|| dispatch(isa, Pick { x, weights, params, counts }));
                *token = drawn.map_or(u32::MAX, |drawn| drawn as u32);
                if let Some(log_sum) = log_sum {
                    let logit = drawn.map_or(f32::NEG_INFINITY, |drawn| row::clean(logits[drawn].to_f32()));
                    *logprob = (f64::from(logit) - log_sum) as f32;
                }
            };
            let next = AtomicUsize::new(0);
            let draw_all = |thread: usize| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= num_samples {
                        break;
                    }
                    draw(thread, i);
                }
            };
            if num_samples == 1 { draw_all(0) } else { cpu.pool.run(&draw_all) }
        });
    }
    record(out, inputs, state)
}

/// Writes the drawn tokens to the state, in the order of the samples.
fn record(out: &SampleBuf<Buf>, inputs: &CpuInputs, state: &mut SeqState<Buf>) -> Result<()> {
    let tokens = numbers::<u32>(OP, "out.tokens", &out.tokens, inputs.num_samples())?;
    let last_tokens = numbers_mut::<u32>(OP, "state.last_tokens", &mut state.last_tokens, state.max_rows)?;
    let len = state.max_rows * state.vocab;
    let counts = numbers_mut::<u16>(OP, "state.token_counts", &mut state.token_counts, len)?;
    for (params, &token) in inputs.samples.iter().zip(tokens) {
        if params.seq_row == PADDING {
            continue;
        }
        let row = params.seq_row as usize;
        last_tokens[row] = token;
        if params.has_penalties() && (token as usize) < state.vocab {
            count_token(&mut counts[row * state.vocab + token as usize]);
        }
    }
    Ok(())
}

/// [`row::load_logits`].
struct LoadLogits<'a, E> {
    src: &'a [E],
    dst: &'a mut [f32],
}

impl<E: Element> Kernel for LoadLogits<'_, E> {
    type Output = bool;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        row::load_logits(s, self.src, self.dst)
    }
}

/// [`logprobs::log_sum_exp`] and [`logprobs::top`]; zero and nothing for a row without a finite logit.
struct LogProbs<'a> {
    any_finite: bool,
    x: &'a [f32],
    weights: &'a mut [f32],
    count: usize,
}

impl Kernel for LogProbs<'_> {
    type Output = (f64, [(u32, f32); MAX_LOGPROBS]);
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        if !self.any_finite {
            return (0.0, logprobs::NONE);
        }
        (logprobs::log_sum_exp(s, self.x, self.weights), logprobs::top(s, self.x, self.count))
    }
}

/// The index that the params choose.
struct Pick<'a> {
    /// Logits, at least one finite and none NaN; changed by the draw.
    x: &'a mut [f32],
    /// Working memory of the same size.
    weights: &'a mut [f32],
    params: &'a SampleParams,
    /// Of the sample's row, where it has penalties.
    counts: Option<&'a [u16]>,
}

impl Kernel for Pick<'_> {
    type Output = usize;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        let Self { x, weights, params, counts } = self;
        if let Some(counts) = counts {
            penalize(x, counts, params);
        }
        if params.is_greedy() {
            return row::arg_max(s, x).1;
        }
        row::divide(s, x, params.temperature);
        let (max, first) = row::arg_max(s, x);
        if max == f32::NEG_INFINITY {
            return first;
        }
        let threshold = cut::threshold(s, x, max, params, weights);
        row::draw(s, x, threshold, params.seed, params.position).1
    }
}

/// Applies the penalties to the logits of counted tokens.
fn penalize(x: &mut [f32], counts: &[u16], params: &SampleParams) {
    for (x, &count) in x.iter_mut().zip(counts) {
        if count == 0 {
            continue;
        }
        if params.repetition_penalty != 1.0 {
            *x = if *x > 0.0 { *x / params.repetition_penalty } else { *x * params.repetition_penalty };
        }
        let generated = count & !PROMPT_BIT;
        if generated > 0 {
            *x -= params.presence_penalty + params.frequency_penalty * f32::from(generated);
        }
    }
}
