use minisgl_kernels::{Backend, DType, KernelError};
use proptest::prelude::*;

use super::support::{Failure, Guarded, Rng, dtype, one_of, same_bits};
use super::{CheckConfig, OpCases, no_bench, property};

/// Captured ops replay on what their memory then holds; a backend without graphs says so.
pub(super) fn cases<B: Backend>() -> OpCases<B> {
    OpCases { name: "graph", check, bench: no_bench }
}

#[derive(Clone, Debug)]
struct Case {
    dtype: DType,
    rows: usize,
    cols: usize,
    seed: u64,
}

fn strategy() -> impl Strategy<Value = Case> {
    (dtype(), 1..9usize, one_of(&[8, 64, 256, 1024]), any::<u64>())
        .prop_map(|(dtype, rows, cols, seed)| Case { dtype, rows, cols, seed })
}

fn check<B: Backend>(backend: &mut B, config: &CheckConfig) -> Result<(), String> {
    property(backend, config, strategy(), check_case)
}

fn check_case<B: Backend>(backend: &mut B, _: &CheckConfig, case: &Case) -> Result<(), Failure> {
    let &Case { dtype, rows, cols, seed } = case;
    if !backend.has_graphs() {
        return match backend.capture(&mut |_| Ok(())) {
            Err(KernelError::Unsupported { .. }) => Ok(()),
            Err(other) => Err(other.into()),
            Ok(_) => Err(Failure::wrong("capture works although has_graphs() is false")),
        };
    }
    let mut rng = Rng::new(seed);
    let weight = Guarded::new(backend, dtype, 1, cols, &rng.normals(cols, 1.0, 0.3))?;
    let matrix = Guarded::new(backend, dtype, cols, cols, &rng.normals(cols * cols, 0.0, 0.1))?;
    let mut x = Guarded::poisoned(backend, dtype, rows, cols)?;
    let mut normed = Guarded::poisoned(backend, dtype, rows, cols)?;
    let mut out = Guarded::poisoned(backend, dtype, rows, cols)?;
    let mut body = |backend: &mut B, x: &Guarded<B::Buf>, out: &mut Guarded<B::Buf>| {
        backend.rms_norm(&mut normed.tensor, &x.tensor, &weight.tensor, 1e-5, rows)?;
        backend.linear(&mut out.tensor, &normed.tensor, &matrix.tensor, None, rows)
    };
    // Once before the capture, as an engine's warm-up does: nothing may be allocated or tuned inside.
    body(backend, &x, &mut out)?;
    let graph = backend.capture(&mut |backend| body(backend, &x, &mut out))?;
    out.rewrite(backend, &vec![0.0; rows * cols])?;
    for _ in 0..2 {
        x.rewrite(backend, &rng.activations(rows * cols))?;
        backend.replay(&graph)?;
        let replayed = out.read_rows(backend, "out", rows)?;
        body(backend, &x, &mut out)?;
        same_bits("replayed out", &replayed, &out.read_rows(backend, "out", rows)?)?;
    }
    Ok(())
}
