//! The CPU backend.

mod buf;
mod isa;
mod pool;
mod simd;

pub use buf::Buf;
pub use isa::Isa;
