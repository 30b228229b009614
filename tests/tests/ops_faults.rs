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
        .filter(|&(fault, op)| find::<Naive>(op).check(&mut Naive { fault: Some(fault) }, &config).is_ok())
        .collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
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
