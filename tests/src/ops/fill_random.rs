use minisgl_kernels::{Backend, DType};
use proptest::prelude::*;

use super::support::{Failure, Guarded, dtype, one_of};
use super::{CheckConfig, OpCases, no_bench, property};

/// What this op is checked on.
pub(super) fn cases<B: Backend>() -> OpCases<B> {
    OpCases { name: "fill_random", check, bench: no_bench }
}

#[derive(Clone, Debug)]
struct Case {
    dtype: DType,
    rows: usize,
    cols: usize,
    mean: f32,
    std: f32,
    seed: u64,
}

fn strategy() -> impl Strategy<Value = Case> {
    let mean = prop::sample::select(vec![0.0, 1.0, -0.5]);
    let std = prop::sample::select(vec![1.0, 0.02]);
    (dtype(), one_of(&[1, 3, 64, 257]), one_of(&[1, 5, 128, 1001]), mean, std, any::<u64>())
        .prop_map(|(dtype, rows, cols, mean, std, seed)| Case { dtype, rows, cols, mean, std, seed })
}

fn check<B: Backend>(backend: &mut B, config: &CheckConfig) -> Result<(), String> {
    property(backend, config, strategy(), check_case)
}

fn check_case<B: Backend>(backend: &mut B, _: &CheckConfig, case: &Case) -> Result<(), Failure> {
    let &Case { dtype, rows, cols, mean, std, seed } = case;
    let fill = |backend: &mut B, seed: u64| {
        let mut dst = Guarded::poisoned(backend, dtype, rows, cols)?;
        backend.fill_random(&mut dst.tensor, mean, std, seed)?;
        dst.read_rows(backend, "dst", rows)
    };
    let found = fill(backend, seed)?;
    if fill(backend, seed)? != found {
        return Err(Failure::wrong("the same seed gave other noise"));
    }
    let n = found.len();
    if n > 100 && fill(backend, seed ^ 1)? == found {
        return Err(Failure::wrong("another seed gave the same noise"));
    }
    // Uniform with deviation std reaches sqrt(3) std from its mean; storage rounds.
    let (mean, std) = (f64::from(mean), f64::from(std));
    let slack = dtype.epsilon() * (mean.abs() + 2.0 * std);
    let reach = 3f64.sqrt() * std + slack;
    if let Some(x) = found.iter().find(|x| x.is_nan() || (*x - mean).abs() > reach) {
        return Err(Failure::wrong(format!("{x} is not within {reach} of {mean}")));
    }
    // Six standard errors of each estimate; the fourth moment of a uniform distribution is 9/5 std^4.
    let found_mean = found.iter().sum::<f64>() / n as f64;
    let found_variance = found.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
    let (mean_error, variance_error) = ((found_mean - mean).abs(), (found_variance - std * std).abs());
    let root = (n as f64).sqrt();
    if mean_error > 6.0 * std / root + slack
        || variance_error > 6.0 * std * std * 0.8f64.sqrt() / root + 4.0 * std * slack
    {
        return Err(Failure::wrong(format!("mean {found_mean}, variance {found_variance} of {n} numbers")));
    }
    Ok(())
}
