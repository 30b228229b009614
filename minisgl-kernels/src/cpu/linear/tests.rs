//! What an oracle cannot see: that bits do not depend on how the work was cut.

use super::*;
use crate::Backend;
use crate::cpu::{CpuOptions, Isa};

fn cpu(isa: Isa, threads: usize) -> Cpu {
    Cpu::new(CpuOptions { threads: Some(threads), isa: Some(isa) }).unwrap()
}

/// The bits of `linear` on `rows` rows of noise, of which the first are always the same.
fn run(cpu: &mut Cpu, dtype: DType, rows: usize, n: usize, k: usize, with_bias: bool) -> Vec<u32> {
    let mut x = cpu.tensor("x", dtype, rows, k).unwrap();
    let mut weight = cpu.tensor("weight", dtype, n, k).unwrap();
    let mut bias = cpu.tensor("bias", dtype, 1, n).unwrap();
    let mut out = cpu.tensor("out", DType::F32, rows, n).unwrap();
    cpu.fill_random(&mut x, 0.0, 1.0, 1).unwrap();
    cpu.fill_random(&mut weight, 0.0, 1.0, 2).unwrap();
    cpu.fill_random(&mut bias, 0.0, 1.0, 3).unwrap();
    cpu.linear(&mut out, &x, &weight, with_bias.then_some(&bias), rows).unwrap();
    out.buf.as_slice::<u32>().to_vec()
}

#[test]
fn a_row_has_the_same_bits_in_any_company() {
    // K around one step, one block of K and several; N around a tile.
    let shapes = [(1, 1), (5, 31), (7, 1025), (70, 130), (3, 4500)];
    for isa in Isa::available() {
        for dtype in DType::ALL {
            for (n, k) in shapes {
                let alone = run(&mut cpu(isa, 1), dtype, 1, n, k, true);
                for rows in [2, 5, 6, 7, 13, 40] {
                    let together = run(&mut cpu(isa, 3), dtype, rows, n, k, true);
                    assert_eq!(alone, together[..n], "{isa}, {dtype}, {rows} rows, n {n}, k {k}");
                }
            }
        }
    }
}

#[test]
fn every_row_has_its_own_result() {
    // Group borders: each row of a large call against a call that starts with it.
    for isa in Isa::available() {
        let (rows, n, k) = (29, 10, 1100);
        let together = run(&mut cpu(isa, 2), DType::BF16, rows, n, k, false);
        let mut backend = cpu(isa, 2);
        let mut x = backend.tensor("x", DType::BF16, rows, k).unwrap();
        let mut weight = backend.tensor("weight", DType::BF16, n, k).unwrap();
        let mut out = backend.tensor("out", DType::F32, 1, n).unwrap();
        let mut row = backend.tensor("row", DType::BF16, 1, k).unwrap();
        backend.fill_random(&mut x, 0.0, 1.0, 1).unwrap();
        backend.fill_random(&mut weight, 0.0, 1.0, 2).unwrap();
        for r in 0..rows {
            let bytes = x.buf.as_slice::<u8>()[r * k * 2..(r + 1) * k * 2].to_vec();
            backend.write(&mut row.buf, 0, &bytes).unwrap();
            backend.linear(&mut out, &row, &weight, None, 1).unwrap();
            assert_eq!(out.buf.as_slice::<u32>(), &together[r * n..(r + 1) * n], "{isa}, row {r}");
        }
    }
}

#[test]
fn groups_cover_the_rows_and_differ_by_one_at_most() {
    for rows in 1..100 {
        for most in [1, 3, 6] {
            let layout = Layout::new(rows, 33, most, 16);
            let lens: Vec<usize> = (0..layout.num_groups()).map(|group| layout.rows(group).len()).collect();
            assert_eq!(lens.iter().sum::<usize>(), rows);
            assert!(lens.iter().all(|&len| len <= most && len + 1 >= lens[0] && len >= 1), "{lens:?}");
            let last = layout.num_groups() - 1;
            assert_eq!(layout.offset(last, layout.num_steps()), layout.len());
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let mut cpu = Cpu::new(CpuOptions::default()).unwrap();
    let mut tensor = |dtype, rows, cols| cpu.tensor("test", dtype, rows, cols).unwrap();
    let (x, weight, bias) = (tensor(DType::F32, 4, 8), tensor(DType::F32, 6, 8), tensor(DType::F32, 1, 5));
    let (mut out, narrow, half) =
        (tensor(DType::F32, 4, 6), tensor(DType::F32, 6, 7), tensor(DType::F16, 6, 8));
    let (empty, empty_weight) = (tensor(DType::F32, 4, 0), tensor(DType::F32, 6, 0));
    let error = |result: Result<()>| result.unwrap_err().to_string();
    assert_eq!(error(cpu.linear(&mut out, &x, &weight, None, 5)), "linear: x.rows is 4, expected 5");
    assert_eq!(error(cpu.linear(&mut out, &x, &narrow, None, 4)), "linear: x.cols is 8, expected 7");
    assert_eq!(
        error(cpu.linear(&mut out, &x, &weight, Some(&bias), 4)),
        "linear: bias.cols is 5, expected 6"
    );
    assert_eq!(error(cpu.linear(&mut out, &x, &half, None, 4)), "linear: weight has dtype f16, expected f32");
    assert_eq!(
        error(cpu.linear(&mut out, &empty, &empty_weight, None, 4)),
        "linear: x.cols is 0, expected 1"
    );
    assert!(cpu.linear(&mut out, &x, &weight, None, 0).is_ok());
}
