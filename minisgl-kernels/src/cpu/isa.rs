//! Instruction sets and their detection at run time.

use std::fmt;

/// The instruction set that the kernels use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// AVX-512 (F, BW, DQ, VL) and its bf16 dot product.
    Avx512Bf16,
    /// AVX-512 (F, BW, DQ, VL).
    Avx512,
    /// AVX2, FMA and F16C.
    Avx2,
    /// Whatever the compiler makes of scalar code on the target's baseline.
    Portable,
}

impl Isa {
    /// Every instruction set, widest first.
    pub const ALL: [Isa; 4] = [Isa::Avx512Bf16, Isa::Avx512, Isa::Avx2, Isa::Portable];

    /// Those that this machine has, widest first. Never empty.
    pub fn available() -> Vec<Isa> {
        Self::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// The fastest that this machine has. Not always the widest: the bf16 dot product does twice the work of an
    /// f32 multiply-add a cycle on AMD's cores and half of it on Intel's (Sapphire Rapids: 80 against 160
    /// GFLOP/s a core), where converting bf16 to f32 is the faster way. By vendor and not by measurement, so
    /// that a machine always gives the same bits.
    pub fn fastest() -> Isa {
        let is_slow = |isa: &Isa| *isa == Isa::Avx512Bf16 && !is_amd();
        Self::ALL.into_iter().find(|isa| isa.is_available() && !is_slow(isa)).unwrap_or(Isa::Portable)
    }

    /// Whether this machine has it.
    #[cfg(target_arch = "x86_64")]
    pub fn is_available(self) -> bool {
        use std::arch::is_x86_feature_detected as has;
        match self {
            Isa::Avx512Bf16 => Isa::Avx512.is_available() && has!("avx512bf16"),
            Isa::Avx512 => {
                Isa::Avx2.is_available()
                    && has!("avx512f")
                    && has!("avx512bw")
                    && has!("avx512dq")
                    && has!("avx512vl")
            }
            Isa::Avx2 => has!("avx2") && has!("fma") && has!("f16c"),
            Isa::Portable => true,
        }
    }

    /// Whether this machine has it.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn is_available(self) -> bool {
        self == Isa::Portable
    }
}

/// Whether the CPU is AMD's.
#[cfg(target_arch = "x86_64")]
fn is_amd() -> bool {
    let vendor = std::arch::x86_64::__cpuid(0);
    [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened() == b"AuthenticAMD"
}

/// Whether the CPU is AMD's.
#[cfg(not(target_arch = "x86_64"))]
fn is_amd() -> bool {
    false
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isa::Avx512Bf16 => "AVX-512 BF16",
            Isa::Avx512 => "AVX-512",
            Isa::Avx2 => "AVX2",
            Isa::Portable => "portable",
        })
    }
}
