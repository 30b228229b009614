mod bench;
mod draw;

use minisgl_kernels::{Backend, DType, MAX_LOGPROBS, PADDING, SampleParams, Samples, StepInputs};
use minisgl_reference::distribution;
use proptest::prelude::*;

use super::support::{Failure, Guarded, Rng, Words, dtype, expect_err, one_of};
use super::{CheckConfig, OpCases, fixed, property};
use draw::Draw;

/// What this op is checked and timed on.
pub(super) fn cases<B: Backend>() -> OpCases<B> {
    OpCases { name: "sample", check, bench: bench::bench }
}

/// What the logits look like.
#[derive(Clone, Copy, Debug)]
enum Logits {
    /// Normal, as at a model's start.
    Normal,
    /// Few different values: many ties, also at every cut.
    Ties,
    /// All the same.
    Constant,
    /// One far above the rest.
    Peaked,
    /// Normal with NaN and infinite holes.
    Holes,
    /// None is finite.
    Nothing,
}

#[derive(Clone, Debug)]
struct Case {
    dtype: DType,
    vocab: usize,
    rows: Vec<Row>,
    padding: usize,
    seed: u64,
}

#[derive(Clone, Debug)]
struct Row {
    logits: Logits,
    params: SampleParams,
}

fn params() -> impl Strategy<Value = SampleParams> {
    let temperature = prop::sample::select(vec![0.0f32, 1.0, 0.6, 0.1, 2.5]);
    let top_k = prop::sample::select(vec![-1, 0, 1, 2, 5, 50, 1000, 1_000_000]);
    let top_p = prop::sample::select(vec![1.0f32, 0.9, 0.5, 0.1, 0.999, 1e-6]);
    let min_p = prop::sample::select(vec![0.0f32, 0.05, 0.5, 1.0]);
    let penalties = prop_oneof![
        2 => Just([0.0f32, 0.0, 1.0]),
        1 => (-2.0..2.0f32, -2.0..2.0f32, 0.5..2.0f32).prop_map(|(a, b, c)| [a, b, c]),
        1 => prop::sample::select(vec![[0.5f32, 0.0, 1.0], [0.0, 0.25, 1.0], [0.0, 0.0, 1.3]]),
    ];
    let num_logprobs = prop::sample::select(vec![-1, 0, 1, 5, MAX_LOGPROBS as i32]);
    (temperature, top_k, top_p, min_p, penalties, num_logprobs, any::<u64>(), any::<u32>()).prop_map(
        |(temperature, top_k, top_p, min_p, penalties, num_logprobs, seed, position)| SampleParams {
            seq_row: PADDING,
            position,
            seed,
            temperature,
            top_k,
            top_p,
            min_p,
            presence_penalty: penalties[0],
            frequency_penalty: penalties[1],
            repetition_penalty: penalties[2],
            num_logprobs,
        },
    )
}

fn strategy() -> impl Strategy<Value = Case> {
    let small = one_of(&[1, 2, 3, 5, 31, 32, 33, 100, 255, 256, 257, 1000, 4096, 4099]);
    let vocab = prop_oneof![12 => small, 1 => one_of(&[32_000, 50_257, 151_936])];
    let logits = prop_oneof![
        4 => Just(Logits::Normal),
        3 => Just(Logits::Ties),
        1 => Just(Logits::Constant),
        1 => Just(Logits::Peaked),
        2 => Just(Logits::Holes),
        1 => Just(Logits::Nothing),
    ];
    let row = (logits, params()).prop_map(|(logits, params)| Row { logits, params });
    (dtype(), vocab, prop::collection::vec(row, 1..7), 0..3usize, any::<u64>())
        .prop_map(|(dtype, vocab, rows, padding, seed)| Case { dtype, vocab, rows, padding, seed })
}

fn check<B: Backend>(backend: &mut B, config: &CheckConfig) -> Result<(), String> {
    property(backend, config, strategy(), check_case)?;
    fixed(backend, "draws against the distribution", |backend| check_statistics(backend, config.seed))?;
    fixed(backend, "arguments that do not fit", check_refusals)
}

fn fill(rng: &mut Rng, kind: Logits, vocab: usize) -> Vec<f64> {
    let mut logits: Vec<f64> = match kind {
        Logits::Normal | Logits::Peaked | Logits::Holes => rng.normals(vocab, 0.0, 3.0),
        Logits::Ties => (0..vocab).map(|_| rng.below(5) as f64 - 2.5).collect(),
        Logits::Constant => vec![-1.25; vocab],
        Logits::Nothing => {
            (0..vocab).map(|_| if rng.chance(0.5) { f64::NAN } else { f64::NEG_INFINITY }).collect()
        }
    };
    if matches!(kind, Logits::Peaked) {
        logits[rng.below(vocab)] = 60.0;
    }
    if matches!(kind, Logits::Holes) {
        for logit in &mut logits {
            if rng.chance(0.3) {
                *logit = if rng.chance(0.5) { f64::NAN } else { f64::NEG_INFINITY };
            }
        }
        // At least one token remains.
        logits[rng.below(vocab)] = 0.5;
    }
    logits
}

/// Draws `draws` in one step, in this order, each on its own row of the state; checks that nothing else changed.
fn run<B: Backend>(
    backend: &mut B,
    rng: &mut Rng,
    dtype: DType,
    vocab: usize,
    draws: &[&Draw],
    padding: usize,
) -> Result<Samples, Failure> {
    let n = draws.len();
    let max_rows = n + 2;
    let rows = rng.distinct(n, max_rows);
    let mut last_tokens = vec![0xDEAD_BEEF; max_rows];
    let mut counts = vec![0x5AA5u16; max_rows * vocab];
    let mut state = backend.seq_state(max_rows, 1, vocab)?;
    let mut out = backend.sample_buf(n + padding + 1)?;
    Words::write_u32(backend, &mut state.last_tokens, &last_tokens)?;
    Words::write_u16(backend, &mut state.token_counts, &counts)?;
    Words::write_u32(backend, &mut out.tokens, &vec![0xDEAD_BEEF; n + padding + 1])?;

    // As a decode step has them: a token a sequence, of which the logits are.
    let mut step = StepInputs { cu_q_lens: vec![0], ..StepInputs::default() };
    for (i, (draw, &row)) in draws.iter().zip(&rows).enumerate() {
        step.token_ids.push(0);
        step.positions.push(0);
        step.slots.push(PADDING);
        step.cu_q_lens.push(i as u32 + 1);
        step.kv_lens.push(1);
        step.seq_rows.push(row);
        step.sample_tokens.push(i as u32);
        step.samples.push(SampleParams { seq_row: row, ..draw.params });
        if draw.params.has_penalties() {
            let tokens = [draw.prompt.clone(), draw.generated.clone()].concat();
            let num_prompt = draw.prompt.len() as u32;
            step.count_resets.push(minisgl_kernels::CountReset { row, num_prompt, tokens });
            counts[row as usize * vocab..][..vocab].copy_from_slice(&draw.counts(vocab));
        }
    }
    for _ in 0..padding {
        step.sample_tokens.push(0);
        step.samples.push(SampleParams { temperature: 1.0, ..SampleParams::greedy(PADDING, 0) });
    }
    let logits: Vec<f64> = draws.iter().flat_map(|draw| draw.logits.iter().copied()).collect();
    let mut logits = Guarded::new(backend, dtype, n + padding + 1, vocab, &logits)?;
    let mut inputs = backend.inputs(n + padding, n + 1, n + padding)?;
    backend.begin_step(&mut inputs, &step, &mut state, &mut [])?;
    backend.sample(&mut out, &logits.tensor, &inputs, &mut state)?;
    let read_back = backend.read_back(&out, n + padding, true)?;
    let samples = backend.wait(read_back)?;

    for (i, (draw, &row)) in draws.iter().zip(&rows).enumerate() {
        let token = samples.tokens[i];
        last_tokens[row as usize] = token;
        if draw.params.has_penalties() && (token as usize) < vocab {
            counts[row as usize * vocab + token as usize] += 1;
        }
    }
    logits.unchanged(backend, "logits")?;
    let found = Words::read_u32(backend, &state.last_tokens, max_rows)?;
    if found != last_tokens {
        return Err(Failure::wrong(format!("last_tokens are {found:?}, expected {last_tokens:?}")));
    }
    let found = Words::read_u16(backend, &state.token_counts, counts.len())?;
    if let Some(i) = (0..counts.len()).find(|&i| found[i] != counts[i]) {
        let (row, token) = (i / vocab, i % vocab);
        let (found, expected) = (found[i], counts[i]);
        return Err(Failure::wrong(format!(
            "the count of token {token} in row {row} is {found:#x}, expected {expected:#x}"
        )));
    }
    let behind = Words::read_u32(backend, &out.tokens, n + padding + 1)?[n + padding];
    if behind != 0xDEAD_BEEF {
        return Err(Failure::wrong("a token was written behind the last sample"));
    }
    Ok(samples)
}

fn check_case<B: Backend>(backend: &mut B, config: &CheckConfig, case: &Case) -> Result<(), Failure> {
    let &Case { dtype, vocab, ref rows, padding, seed } = case;
    let mut rng = Rng::new(seed);
    let dtype = backend.logits_dtype(dtype);
    let p = super::support::precision(dtype);
    let mut draws = Vec::new();
    for row in rows {
        let mut tokens =
            |most: usize| -> Vec<u32> { (0..rng.below(most)).map(|_| rng.below(vocab) as u32).collect() };
        let (prompt, generated) = (tokens(30), tokens(20));
        let logits = fill(&mut rng, row.logits, vocab).iter().map(|&x| p.store(x)).collect();
        draws.push(Draw { params: row.params, logits, prompt, generated });
    }
    let all: Vec<&Draw> = draws.iter().collect();
    let before = rng.clone();
    let samples = run(backend, &mut rng, dtype, vocab, &all, padding)?;
    let again = run(backend, &mut before.clone(), dtype, vocab, &all, padding)?;
    same_draws(&samples, &again, &draws)?;
    for (i, draw) in draws.iter().enumerate() {
        draw.check_token(samples.tokens[i])?;
        if draw.params.num_logprobs >= 0 && samples.tokens[i] != u32::MAX {
            let top = i * MAX_LOGPROBS..(i + 1) * MAX_LOGPROBS;
            let (top_tokens, top) = (&samples.top_tokens[top.clone()], &samples.top_logprobs[top]);
            draw.check_logprobs(samples.tokens[i], samples.logprobs[i], top_tokens, top)?;
        }
    }
    // The same draws in another batch: one alone, then all in reverse.
    let alone = rng.below(draws.len());
    let token = run(backend, &mut rng, dtype, vocab, &[&draws[alone]], 0)?.tokens[0];
    let reversed: Vec<&Draw> = draws.iter().rev().collect();
    let mut tokens = run(backend, &mut rng, dtype, vocab, &reversed, padding)?.tokens[..draws.len()].to_vec();
    tokens.reverse();
    if config.batch_invariant && (token != samples.tokens[alone] || tokens != samples.tokens[..draws.len()]) {
        return Err(Failure::wrong(format!(
            "tokens {:?} depend on the batch: {tokens:?} in reverse, {token} for sample {alone} alone",
            &samples.tokens[..draws.len()]
        )));
    }
    Ok(())
}

/// The same step twice: what was asked for is the same bits.
fn same_draws(samples: &Samples, again: &Samples, draws: &[Draw]) -> Result<(), Failure> {
    let n = draws.len();
    let bits = |samples: &Samples| -> Vec<u32> {
        let asked = (0..n).filter(|&i| draws[i].params.num_logprobs >= 0 && samples.tokens[i] != u32::MAX);
        let logprobs = asked.flat_map(|i| {
            let finite = draws[i].logits.iter().filter(|x| x.is_finite()).count();
            let top = i * MAX_LOGPROBS..i * MAX_LOGPROBS + finite.min(draws[i].params.num_logprobs as usize);
            let values = samples.logprobs[i..=i].iter().chain(&samples.top_logprobs[top.clone()]);
            values.map(|x| x.to_bits()).chain(samples.top_tokens[top].iter().copied()).collect::<Vec<_>>()
        });
        samples.tokens[..n].iter().copied().chain(logprobs).collect()
    };
    if bits(samples) != bits(again) {
        return Err(Failure::wrong("the same step gave other tokens or log probabilities"));
    }
    Ok(())
}

/// Many draws from one distribution: the chi-square statistic stays below its 1 - 1e-6 quantile.
fn check_statistics<B: Backend>(backend: &mut B, seed: u64) -> Result<(), Failure> {
    let mut rng = Rng::new(seed);
    let (vocab, n) = (23, 8192);
    let dtype = backend.logits_dtype(DType::F32);
    let p = super::support::precision(dtype);
    let logits: Vec<f64> = rng.normals(vocab, 0.0, 1.0).iter().map(|&x| p.store(x)).collect();
    let params = SampleParams {
        temperature: 0.8,
        top_p: 0.95,
        top_k: 18,
        seed: rng.bits(),
        ..SampleParams::greedy(PADDING, 0)
    };
    let draws: Vec<Draw> = (0..n as u32)
        .map(|position| Draw {
            params: SampleParams { position, ..params },
            logits: logits.clone(),
            prompt: vec![],
            generated: vec![],
        })
        .collect();
    let all: Vec<&Draw> = draws.iter().collect();
    let samples = run(backend, &mut rng, dtype, vocab, &all, 0)?;
    let expected = distribution(&logits, &draws[0].oracle());
    let mut counts = vec![0f64; vocab];
    for &token in &samples.tokens[..n] {
        counts[token as usize] += 1.0;
    }
    let (mut chi_square, mut freedom) = (0.0, -1.0);
    for (token, (count, p)) in counts.iter().zip(&expected).enumerate() {
        if *p == 0.0 && *count > 0.0 {
            return Err(Failure::wrong(format!("token {token} was drawn {count} times, and is not kept")));
        }
        if *p > 0.0 {
            chi_square += (count - n as f64 * p).powi(2) / (n as f64 * p);
            freedom += 1.0;
        }
    }
    // Wilson, Hilferty 1931: the cube root of chi-square over its freedom is close to normal.
    let spread = 2.0 / (9.0 * freedom);
    let z = ((chi_square / freedom).cbrt() - (1.0 - spread)) / spread.sqrt();
    if z > 4.75 {
        return Err(Failure::wrong(format!("chi-square {chi_square:.1} with {freedom} degrees of freedom")));
    }
    Ok(())
}

fn check_refusals<B: Backend>(backend: &mut B) -> Result<(), Failure> {
    let dtype = backend.logits_dtype(DType::F32);
    let mut state = backend.seq_state(2, 1, 10)?;
    let mut inputs = backend.inputs(2, 2, 2)?;
    let step = StepInputs {
        token_ids: vec![0, 0],
        positions: vec![0, 0],
        slots: vec![PADDING, PADDING],
        cu_q_lens: vec![0, 1, 2],
        kv_lens: vec![1, 1],
        seq_rows: vec![0, 1],
        sample_tokens: vec![0, 1],
        samples: vec![SampleParams::greedy(0, 1), SampleParams::greedy(1, 1)],
        ..StepInputs::default()
    };
    backend.begin_step(&mut inputs, &step, &mut state, &mut [])?;
    let (mut out, mut small) = (backend.sample_buf(2)?, backend.sample_buf(1)?);
    let (logits, wide) = (backend.tensor("logits", dtype, 2, 10)?, backend.tensor("logits", dtype, 2, 11)?);
    expect_err("more samples than fit", backend.sample(&mut small, &logits, &inputs, &mut state))?;
    expect_err("logits of another vocabulary", backend.sample(&mut out, &wide, &inputs, &mut state))
}
