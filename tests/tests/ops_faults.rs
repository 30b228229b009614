//! The checks of the op registry are checked: they accept the oracle itself, and each of a list of mistakes is
//! found by the check of the op that makes it.

use minisgl_tests::ops::naive::{Fault, Naive};
use minisgl_tests::ops::{CheckConfig, OPS, find, registry};

#[test]
fn every_check_accepts_the_oracle() {
    let config = CheckConfig::from_env(12);
    for op in registry::<Naive>() {
        op.check(&mut Naive::default(), &config).unwrap_or_else(|what| panic!("{what}"));
    }
}

#[test]
fn every_fault_is_found() {
    // A fixed seed: what is shown is that the cases suffice, not that luck does.
    let config = CheckConfig { cases: 60, seed: 1, shrink: false, ..CheckConfig::from_env(60) };
    let missed: Vec<_> = Fault::ALL
        .into_iter()
        .filter(|&(fault, op)| find::<Naive>(op).check(&mut Naive::with(fault), &config).is_ok())
        .collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
}

/// Two runs of any op give the same bits: every check runs its op twice, or compares bit by bit with the oracle.
#[test]
fn every_check_finds_a_second_run_with_other_bits() {
    let config = CheckConfig { cases: 30, seed: 1, shrink: false, ..CheckConfig::from_env(30) };
    // What `begin_step` writes is compared with the oracle bit by bit, and the oracle has no graphs.
    for &op in OPS.iter().filter(|op| !["begin_step", "graph"].contains(op)) {
        let mut unsteady = Naive::with(Fault::EveryOtherRunOffByOneBit);
        let found = find::<Naive>(op).check(&mut unsteady, &config).is_err();
        assert!(found, "the check of {op} does not find a second run with other bits");
    }
}

#[test]
fn no_op_is_listed_twice() {
    let mut names: Vec<_> = registry::<Naive>().iter().map(|op| op.name).collect();
    assert_eq!(names, OPS, "an op's file is called as the op");
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}
