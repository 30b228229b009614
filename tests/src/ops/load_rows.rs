use minisgl_kernels::{Backend, DType};
use proptest::prelude::*;

use super::support::{
    Failure, Guarded, Rng, bitwise, dtype, encode, expect_err, one_of, precision, same_bits,
};
use super::{CheckConfig, OpCases, fixed, no_bench, property};

/// What this op is checked on.
pub(super) fn cases<B: Backend>() -> OpCases<B> {
    OpCases { name: "load_rows", check, bench: no_bench }
}

#[derive(Clone, Debug)]
struct Case {
    src_dtype: DType,
    dtype: DType,
    rows: usize,
    first_row: usize,
    num_rows: usize,
    cols: usize,
    seed: u64,
}

fn strategy() -> impl Strategy<Value = Case> {
    let cols = one_of(&[1, 2, 7, 16, 33, 64, 1000, 4097]);
    (dtype(), dtype(), 0..4usize, 1..9usize, 0..3usize, cols, any::<u64>()).prop_map(
        |(src_dtype, dtype, first_row, num_rows, rest, cols, seed)| Case {
            src_dtype,
            dtype,
            rows: first_row + num_rows + rest,
            first_row,
            num_rows,
            cols,
            seed,
        },
    )
}

fn check<B: Backend>(backend: &mut B, config: &CheckConfig) -> Result<(), String> {
    property(backend, config, strategy(), check_case)?;
    fixed(backend, "write and read", check_write_read)?;
    fixed(backend, "arguments that do not fit", check_refusals)
}

/// Numbers of every exponent that some dtype has, ties between neighbours in 16 bits, infinities, zeros.
fn awkward(rng: &mut Rng) -> f64 {
    let sign = if rng.chance(0.5) { 1.0 } else { -1.0 };
    sign * match rng.below(8) {
        0 => 0.0,
        1 => f64::INFINITY,
        2 => (1.0 + (2.0 * rng.below(128) as f64 + 1.0) / 256.0) * 2f64.powi(rng.below(30) as i32 - 15),
        3 => (1.0 + (2.0 * rng.below(1024) as f64 + 1.0) / 2048.0) * 2f64.powi(rng.below(30) as i32 - 15),
        4 => rng.unit() * 2f64.powi(rng.below(12) as i32 - 26),
        5 => rng.unit() * 2f64.powi(rng.below(270) as i32 - 145),
        6 => 65_504.0 + rng.unit() * 32.0,
        _ => rng.normal(),
    }
}

fn check_case<B: Backend>(backend: &mut B, _: &CheckConfig, case: &Case) -> Result<(), Failure> {
    let &Case { src_dtype, dtype, rows, first_row, num_rows, cols, seed } = case;
    let mut rng = Rng::new(seed);
    let values: Vec<f64> = (0..num_rows * cols).map(|_| awkward(&mut rng)).collect();
    let mut dst = Guarded::poisoned(backend, dtype, rows, cols)?;
    // One byte off, since a tensor in a mapped file need not be aligned.
    let mut src = vec![0xA5];
    src.extend(encode(src_dtype, &values));
    backend.load_rows(&mut dst.tensor, first_row, &src[1..], src_dtype)?;
    src.fill(0xA5);
    let loaded = first_row..first_row + num_rows;
    let found = dst.read_marked(backend, "dst", |row| !loaded.contains(&row))?;
    let stored: Vec<f64> = values.iter().map(|&x| precision(src_dtype).store(x)).collect();
    bitwise("dst", precision(dtype), &found[first_row * cols..][..num_rows * cols], &stored)
}

fn check_write_read<B: Backend>(backend: &mut B) -> Result<(), Failure> {
    let mut buf = backend.alloc("test buffer", 1000)?;
    let mut bytes = [1u8; 1000];
    backend.read(&buf, 0, &mut bytes)?;
    if bytes != [0; 1000] {
        return Err(Failure::wrong("fresh memory is not zero"));
    }
    backend.write(&mut buf, 17, &[7; 100])?;
    bytes[17..117].fill(7);
    let mut found = [1u8; 1000];
    backend.read(&buf, 0, &mut found)?;
    let mut part = [0u8; 10];
    backend.read(&buf, 112, &mut part)?;
    if found != bytes || part != [7, 7, 7, 7, 7, 0, 0, 0, 0, 0] {
        return Err(Failure::wrong("what was written is not what is read"));
    }
    expect_err("write past the end", backend.write(&mut buf, 990, &[0; 11]))?;
    expect_err("read past the end", backend.read(&buf, 995, &mut part))
}

fn check_refusals<B: Backend>(backend: &mut B) -> Result<(), Failure> {
    let mut dst = backend.tensor("test tensor", DType::F32, 3, 4)?;
    expect_err("rows past the end", backend.load_rows(&mut dst, 2, &[0; 32], DType::F32))?;
    expect_err("half a row", backend.load_rows(&mut dst, 0, &[0; 24], DType::F32))?;
    let mut dst = Guarded::new(backend, DType::F32, 1, 2, &[1.0, 2.0])?;
    backend.load_rows(&mut dst.tensor, 0, &encode(DType::BF16, &[f64::NAN, 3.0]), DType::BF16)?;
    same_bits("a NaN", &dst.read_rows(backend, "dst", 1)?, &[f64::NAN, 3.0])
}
