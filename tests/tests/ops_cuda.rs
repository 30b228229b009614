//! Every op of the registry on the first GPU. Where there is none, says how many cases were skipped.
//!
//! `MINISGL_TEST_CASES` says how many random cases an op gets; a failure names the seed that finds it again
//! through `MINISGL_TEST_SEED`.
#![cfg(feature = "cuda")]

use minisgl_kernels::Backend;
use minisgl_kernels::cuda::{Cuda, CudaOptions, num_devices};
use minisgl_tests::ops::{CheckConfig, find, registry};

/// Ops whose bits may depend on the batch: cuBLASLt chooses by the number of rows, attention cuts its work by
/// the batch.
const BATCH_DEPENDENT: [&str; 2] = ["linear", "attention"];

fn check(name: &str) {
    if num_devices() == 0 {
        println!("skipped: no GPU");
        return;
    }
    let mut config = CheckConfig::from_env(64);
    config.batch_invariant = !BATCH_DEPENDENT.contains(&name);
    let mut cuda = Cuda::open(CudaOptions::default()).expect("a GPU that can be used");
    find::<Cuda>(name).check(&mut cuda, &config).unwrap_or_else(|what| panic!("{what}"));
    cuda.synchronize().expect("no error left behind");
}

macro_rules! ops {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            check(stringify!($name));
        })*

        #[test]
        fn every_op_has_a_test() {
            let tested = [$(stringify!($name)),*];
            let ops: Vec<_> = registry::<Cuda>().iter().map(|op| op.name).collect();
            assert_eq!(ops, tested);
            if num_devices() == 0 {
                println!("{} GPU op cases skipped: no GPU", tested.len());
            }
        }
    };
}

ops! {
    load_rows fill_random begin_step embedding rms_norm add_rms_norm linear rope_store_kv attention act_mul
    gather_samples sample graph
}

/// What a machine without GPU or driver says.
#[test]
fn a_missing_device_is_an_error_that_says_what_is_missing() {
    let options = CudaOptions { ordinal: 4096, ..Default::default() };
    let error = Cuda::open(options).err().expect("there are not that many GPUs").to_string();
    assert!(error.contains("cuda:4096"), "{error}");
}
