//! Choosing among kernels that are about as fast alone: by the time of the whole step.
//!
//! A kernel starts while the one before it ends, as far as the multiprocessors have room for both, so that what is the
//! faster behind its own kind need not be the faster between a step's other kernels.

use std::mem;

use super::super::Cuda;
use super::super::device::Event;
use super::super::graph::{self, CudaGraph};
use super::skinny::{Key, Variant};
use crate::{KernelError, Result};

/// What takes alone at most this multiple of the fastest's time may be the fastest in a step.
const CLOSE: f32 = 1.1;
/// What the fastest must take at most of the time of a choice before it in the list, alone and in a step: noise shall
/// not change the kernel, and with it the last bits, from run to run.
const MARGIN_ALONE: f32 = 0.97;
const MARGIN_IN_STEP: f32 = 0.996;
/// Milliseconds of replays of a step, in turn with those of the others, and how many replays that may be.
const REPLAYS_MS: f32 = 6.0;
const LEAST_REPLAYS: usize = 3;
const MOST_REPLAYS: usize = 5;

/// Which kernel computes a product: an own one, or else cuBLASLt.
pub(super) type Choice = Option<Variant>;

/// Choices for a product that are about as fast alone.
#[derive(Debug)]
pub(super) struct Rivals {
    key: Key,
    /// In the order of preference: first what is preferred alone.
    choices: Vec<Choice>,
    /// How often the step computes such a product.
    uses: usize,
}

impl Rivals {
    /// The close ones of what `took` so many microseconds alone.
    pub(super) fn new(key: Key, took: &[(Choice, f32)]) -> Self {
        let least = least(took);
        let close = took.iter().filter(|(_, took)| *took <= CLOSE * least).map(|(choice, _)| *choice);
        let mut choices: Vec<Choice> = close.collect();
        let alone = preferred(took, MARGIN_ALONE);
        // A stable sort: the others stay in the order of the list.
        choices.sort_by_key(|choice| *choice != alone);
        Self { key, choices, uses: 1 }
    }

    /// What is preferred alone.
    pub(super) fn first(&self) -> Choice {
        self.choices.first().copied().flatten()
    }

    /// Counts another product, where it is such a one.
    pub(super) fn count(&mut self, key: &Key) {
        self.uses += usize::from(self.key == *key);
    }
}

fn least(took: &[(Choice, f32)]) -> f32 {
    took.iter().map(|(_, took)| *took).fold(f32::INFINITY, f32::min)
}

/// The first that is about as fast as the fastest.
fn preferred(took: &[(Choice, f32)], margin: f32) -> Choice {
    let least = least(took);
    took.iter().find(|(_, took)| least >= margin * took).and_then(|(choice, _)| *choice)
}

/// Settles what the products in `body`, a step, left open.
pub(crate) fn settle(cuda: &mut Cuda, body: &mut dyn FnMut(&mut Cuda) -> Result<()>) -> Result<()> {
    // What a step does once is as fast there as alone.
    let open = |rivals: &Rivals| rivals.uses > 1 && rivals.choices.len() > 1;
    for rivals in mem::take(&mut cuda.blas.rivals).into_iter().filter(open) {
        match fastest(cuda, &rivals, body) {
            Ok(choice) => {
                if let Some(cache) = &mut cuda.blas.cache {
                    cache.set_choice(rivals.key, choice);
                }
            }
            // Without memory to measure in, the fastest alone stays.
            Err(KernelError::OutOfMemory { .. }) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn fastest(
    cuda: &mut Cuda,
    rivals: &Rivals,
    body: &mut dyn FnMut(&mut Cuda) -> Result<()>,
) -> Result<Choice> {
    let known = cuda.blas.cache.as_ref().and_then(|cache| cache.choice(&rivals.key)).flatten();
    let mut steps = Vec::with_capacity(rivals.choices.len());
    for &choice in &rivals.choices {
        if let Some(cache) = &mut cuda.blas.cache {
            cache.try_choice(rivals.key, choice);
        }
        let step = graph::capture_step(cuda, body);
        if let Some(cache) = &mut cuda.blas.cache {
            cache.try_choice(rivals.key, known);
        }
        steps.push((choice, step?, Vec::new()));
    }
    let mut replays = MOST_REPLAYS;
    while steps.iter().any(|(_, _, times)| times.len() < replays) {
        for (_, step, times) in &mut steps {
            times.push(elapsed_ms(cuda, step)?);
            replays = replays.min((REPLAYS_MS / times[0]) as usize).max(LEAST_REPLAYS);
        }
    }
    let medians: Vec<(Choice, f32)> = steps
        .into_iter()
        .map(|(choice, _, mut times)| {
            times.sort_by(f32::total_cmp);
            (choice, times[(times.len() - 1) / 2])
        })
        .collect();
    tracing::debug!(key = ?rivals.key, step_ms = ?medians, "linear layer measured in its step");
    Ok(preferred(&medians, MARGIN_IN_STEP))
}

fn elapsed_ms(cuda: &mut Cuda, step: &CudaGraph) -> Result<f32> {
    let (start, end) = (Event::new(&cuda.device, true)?, Event::new(&cuda.device, true)?);
    start.record(&cuda.stream)?;
    graph::replay(cuda, step)?;
    end.record(&cuda.stream)?;
    end.wait("tune")?;
    end.elapsed_ms(&start)
}

#[cfg(test)]
mod tests {
    use super::super::Shape;
    use super::*;
    use crate::DType;

    const LIST: [Choice; 3] = [Some(Variant(0)), Some(Variant(4)), None];

    fn took(times: [f32; 3]) -> Vec<(Choice, f32)> {
        LIST.into_iter().zip(times).collect()
    }

    fn key(rows: usize) -> Key {
        let (dtype, out_dtype) = (DType::BF16, DType::BF16);
        let shape = Shape { rows, n: 8, k: 32, dtype, out_dtype, has_bias: false, adds: false };
        Key { shape, has_norm: false, is_gated: false }
    }

    #[test]
    fn of_equals_the_first_in_the_list_is_preferred() {
        assert_eq!(preferred(&took([2.0, 2.0, 2.0]), 0.9), LIST[0]);
        assert_eq!(preferred(&took([2.1, 2.0, 1.95]), 0.9), LIST[0]);
        assert_eq!(preferred(&took([2.3, 2.1, 2.0]), 0.9), LIST[1]);
        assert_eq!(preferred(&took([2.3, 2.4, 2.0]), 0.9), LIST[2]);
        assert_eq!(preferred(&took([3.0, 2.0, 2.5]), 1.0), LIST[1]);
    }

    #[test]
    fn rivals_are_close_and_counted_by_their_key() {
        let mut rivals = Rivals::new(key(8), &took([2.0 * CLOSE * 1.01, 2.0, 2.0 * CLOSE * 0.99]));
        assert_eq!(rivals.choices, LIST[1..]);
        let slower = CLOSE.min(1.0 / MARGIN_ALONE) * 1.01;
        let reordered = Rivals::new(key(8), &took([2.0 * slower, 2.0, 2.0]));
        assert_eq!(reordered.choices, [LIST[1], LIST[0], LIST[2]]);
        assert_eq!(reordered.first(), LIST[1]);
        rivals.count(&key(8));
        rivals.count(&key(16));
        assert_eq!(rivals.uses, 2);
    }
}
