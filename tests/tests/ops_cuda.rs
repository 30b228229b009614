//! Every op of the registry on the first GPU, attention once for every family of kernels and every pair of them, linear
//! layers once for each own kernel.
//! Where there is no GPU every case is skipped, and counted.
//!
//! `MINISGL_TEST_CASES` says how many random cases an op gets; a failure names the seed that finds it again
//! through `MINISGL_TEST_SEED`.

use libtest_mimic::{Arguments, Failed, Trial};
use minisgl_kernels::AttnKernel;
use minisgl_kernels::AttnKernel::{Auto, Fa, Fi, Trtllm};
use minisgl_tests::ops::OPS;

/// Kernels for prefill and for decode: every choice that `attention_backend` accepts.
const FAMILIES: [[AttnKernel; 2]; 9] = [
    [Auto, Auto],
    [Fa, Fa],
    [Fi, Fi],
    [Trtllm, Trtllm],
    [Fa, Fi],
    [Fa, Trtllm],
    [Fi, Trtllm],
    [Trtllm, Fa],
    [Trtllm, Fi],
];

/// Ops that our own kernels for few tokens compute.
const LINEAR_OPS: [&str; 4] = ["linear", "norm_linear", "linear_add", "norm_gated_linear"];
/// Those that the one for many tokens computes, which takes few cases where nothing forces it.
const GEMM_OPS: [&str; 2] = ["linear", "norm_gated_linear"];

/// Which kernels linear layers are told to take, in a program without the backend too.
#[derive(Clone, Copy)]
enum Linear {
    Auto,
    Own(u32),
    Gemm,
}

impl Linear {
    fn name(self) -> String {
        match self {
            Self::Auto => "auto".to_owned(),
            Self::Own(n) => format!("own{n}"),
            Self::Gemm => "gemm".to_owned(),
        }
    }
}

fn main() {
    let args = Arguments::from_args();
    let missing = device::missing();
    let trial = |name: String, op: &'static str, families, linear| {
        Trial::test(name, move || device::check(op, families, linear)).with_ignored_flag(missing.is_some())
    };
    let linear_trial =
        |op: &'static str, linear: Linear| trial(format!("{op}::{}", linear.name()), op, [Auto; 2], linear);
    let mut trials = Vec::new();
    for &op in OPS {
        if op == "attention" {
            let family = |families| trial(format!("{op}::{}", name(families)), op, families, Linear::Auto);
            trials.extend(FAMILIES.map(family));
        } else {
            trials.push(trial(op.to_owned(), op, [Auto; 2], Linear::Auto));
        }
        if LINEAR_OPS.contains(&op) {
            trials.extend((0..device::OWN_LINEAR_KERNELS).map(|n| linear_trial(op, Linear::Own(n))));
        }
    }
    trials.extend(GEMM_OPS.map(|op| linear_trial(op, Linear::Gemm)));
    let num_cases = trials.len();
    trials.push(Trial::test("a_missing_device_is_an_error_that_says_what_is_missing", device::open_too_high));
    let conclusion = libtest_mimic::run(&args, trials);
    if let Some(why) = missing.filter(|_| !args.list) {
        println!(
            "GPU cases skipped: {num_cases} ({why}): every op, attention by {} families",
            FAMILIES.len()
        );
    }
    conclusion.exit();
}

fn name([prefill, decode]: [AttnKernel; 2]) -> String {
    if prefill == decode { prefill.to_string() } else { format!("{prefill},{decode}") }
}

#[cfg(feature = "cuda")]
mod device {
    use minisgl_kernels::Backend;
    pub(crate) use minisgl_kernels::cuda::OWN_LINEAR_KERNELS;
    use minisgl_kernels::cuda::{Cuda, CudaOptions, LinearKernel, num_devices};
    use minisgl_tests::ops::{CheckConfig, find};

    use super::{AttnKernel, Failed, Linear};

    /// Ops whose bits may depend on the batch: cuBLASLt chooses by the number of rows, and own kernels
    /// take few of them; attention cuts its work by the batch.
    const BATCH_DEPENDENT: [&str; 6] =
        ["linear", "norm_linear", "linear_add", "norm_gated_linear", "attention", "rope_attention"];

    /// Why no case can run.
    pub(crate) fn missing() -> Option<&'static str> {
        (num_devices() == 0).then_some("no CUDA device")
    }

    pub(crate) fn check(op: &str, attention: [AttnKernel; 2], linear: Linear) -> Result<(), Failed> {
        let config = CheckConfig {
            batch_invariant: !BATCH_DEPENDENT.contains(&op),
            truncates_sums: true,
            attention,
            ..CheckConfig::from_env(64)
        };
        let [prefill, decode] = attention;
        let linear = match linear {
            Linear::Auto => LinearKernel::Auto,
            Linear::Own(variant) => LinearKernel::Own(variant),
            Linear::Gemm => LinearKernel::Gemm,
        };
        let mut cuda = Cuda::open(CudaOptions { prefill, decode, linear, ..CudaOptions::default() })?;
        find::<Cuda>(op).check(&mut cuda, &config)?;
        cuda.synchronize()?;
        Ok(())
    }

    /// What a machine without GPU or driver says too.
    pub(crate) fn open_too_high() -> Result<(), Failed> {
        let options = CudaOptions { ordinal: 4096, ..CudaOptions::default() };
        match Cuda::open(options) {
            Err(error) if error.to_string().contains("cuda:4096") => Ok(()),
            Err(error) => Err(format!("the error does not name cuda:4096: {error}").into()),
            Ok(_) => Err("there are not that many GPUs".into()),
        }
    }
}

/// A program without the backend: nothing can run.
#[cfg(not(feature = "cuda"))]
mod device {
    use minisgl_engine::Engine;
    use minisgl_engine::config::{Device, EngineConfig};
    use minisgl_tests::models::{ModelKind, TestModel};

    use super::{AttnKernel, Failed, Linear};

    pub(crate) const OWN_LINEAR_KERNELS: u32 = 0;

    pub(crate) fn missing() -> Option<&'static str> {
        Some("built without the feature cuda")
    }

    pub(crate) fn check(op: &str, _: [AttnKernel; 2], _: Linear) -> Result<(), Failed> {
        Err(format!("{op} cannot run: this program was built without the feature cuda").into())
    }

    pub(crate) fn open_too_high() -> Result<(), Failed> {
        let model = TestModel::random(ModelKind::Llama, minisgl_engine::DType::F32, 1, 1, &[]);
        let config = EngineConfig { device: Device::Cuda(4096), ..EngineConfig::new(model.dir()) };
        match Engine::start(config, None) {
            Err(error) if error.to_string().contains("cuda:4096") => Ok(()),
            Err(error) => Err(format!("the error does not name cuda:4096: {error}").into()),
            Ok(_) => Err("a program without the backend started on it".into()),
        }
    }
}
