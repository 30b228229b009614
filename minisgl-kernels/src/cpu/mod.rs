//! The CPU backend: SIMD kernels on a thread pool of its own.
//!
//! Every op is run to its end before it returns. Each output element is computed by one thread in one fixed
//! order of operations, so results depend neither on the number of threads nor on what else is in the batch.

mod act_mul;
mod attention;
mod backend;
mod buf;
mod check;
mod convert;
mod embedding;
mod inputs;
mod isa;
mod linear;
mod math;
mod memory;
mod norm;
mod pool;
pub mod probe;
mod rope_store_kv;
mod sample;
mod scratch;
mod simd;

pub use attention::CpuAttnPlan;
pub use buf::Buf;
pub use inputs::CpuInputs;
pub use isa::Isa;

use std::ops::Range;
use std::sync::Mutex;

use crate::{KernelError, Result};
use pool::Pool;
use scratch::{Scratch, ThreadScratch};
use simd::DetectedIsa;

/// How to set up the CPU backend.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuOptions {
    /// Threads, the calling one included; by default as many as the process may use.
    pub threads: Option<usize>,
    /// Instruction set; by default [`Isa::fastest`].
    pub isa: Option<Isa>,
}

/// The CPU as a [`Backend`](crate::Backend).
pub struct Cpu {
    pool: Pool,
    isa: DetectedIsa,
    /// Working memory of each thread.
    thread_scratch: Box<[Mutex<ThreadScratch>]>,
    /// Packed activations of the `linear` call that runs.
    packed: Scratch,
}

/// Elements of simple arithmetic below which a second thread costs more than it saves.
const MIN_ELEMENTS_PER_CHUNK: usize = 4096;

impl Cpu {
    /// Starts the threads.
    ///
    /// # Errors
    /// [`KernelError::Unsupported`] for an instruction set that the machine lacks or for 0 threads,
    /// [`KernelError::NoDevice`] where threads cannot be started.
    pub fn new(options: CpuOptions) -> Result<Self> {
        let available = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let num_threads = options.threads.unwrap_or_else(available);
        if num_threads == 0 {
            return Err(KernelError::Unsupported {
                op: "Cpu::new",
                what: "threads = 0".to_owned(),
                supported: "1 or more".to_owned(),
            });
        }
        let isa = options.isa.unwrap_or_else(Isa::fastest);
        let detected = DetectedIsa::new(isa).ok_or_else(|| KernelError::Unsupported {
            op: "Cpu::new",
            what: format!("isa = {isa}"),
            supported: format!("this machine has {}", list(&Isa::available())),
        })?;
        let pool = Pool::new(num_threads).map_err(|error| KernelError::NoDevice {
            device: "cpu".to_owned(),
            why: format!("cannot start {num_threads} threads: {error}"),
        })?;
        Ok(Self {
            pool,
            isa: detected,
            thread_scratch: (0..num_threads).map(|_| Mutex::new(ThreadScratch::default())).collect(),
            packed: Scratch::default(),
        })
    }

    /// Threads, the calling one included.
    pub fn num_threads(&self) -> usize {
        self.pool.num_threads()
    }

    /// The instruction set that the kernels use.
    pub fn isa(&self) -> Isa {
        self.isa.isa()
    }

    /// Splits `0..len` items of `elements_per_item` elements each over the threads.
    fn for_items(&self, len: usize, elements_per_item: usize, body: &(dyn Fn(Range<usize>) + Sync)) {
        let grain = MIN_ELEMENTS_PER_CHUNK.div_ceil(elements_per_item.max(1));
        self.pool.for_chunks(len, grain, &|_, range| body(range));
    }
}

fn list(isas: &[Isa]) -> String {
    isas.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Runs `$body` with `$E` as the element type that `$dtype` names.
macro_rules! with_element {
    ($dtype:expr, $E:ident => $body:expr) => {
        match $dtype {
            $crate::DType::BF16 => {
                type $E = half::bf16;
                $body
            }
            $crate::DType::F16 => {
                type $E = half::f16;
                $body
            }
            $crate::DType::F32 => {
                type $E = f32;
                $body
            }
        }
    };
}
use with_element;
