//! Memory of the CPU backend: page-aligned, zero until written, and not backed by RAM before it is touched.

use half::{bf16, f16};
use memmap2::MmapMut;

/// From this size on, a buffer asks for huge pages: streaming weights through 4 KiB pages costs a TLB miss
/// every 64 cache lines.
const HUGE_FROM_BYTES: usize = 4 << 20;

/// Anonymous memory, zeroed, aligned to a page.
#[derive(Debug)]
pub struct Buf {
    map: MmapMut,
    len: usize,
}

/// Types for which any bit pattern is a value and which have no padding.
///
/// # Safety
/// Implementors are plain integers or floats, aligned to at most their size.
pub(crate) unsafe trait Plain: Copy + Send + Sync + 'static {}

// SAFETY: a plain number.
unsafe impl Plain for u8 {}
// SAFETY: a plain number.
unsafe impl Plain for u16 {}
// SAFETY: a plain number.
unsafe impl Plain for u32 {}
// SAFETY: a plain number.
unsafe impl Plain for f32 {}
// SAFETY: `repr(transparent)` over u16.
unsafe impl Plain for bf16 {}
// SAFETY: `repr(transparent)` over u16.
unsafe impl Plain for f16 {}

impl Buf {
    /// `len` bytes of zeros.
    pub(crate) fn zeroed(len: usize) -> std::io::Result<Self> {
        // A mapping of no bytes is an error to the system and an ordinary buffer to us.
        let map = MmapMut::map_anon(len.max(1))?;
        #[cfg(target_os = "linux")]
        if len >= HUGE_FROM_BYTES {
            // Advice: a kernel without huge pages refuses it and nothing is lost.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Ok(Self { map, len })
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the buffer has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The whole buffer as elements of `T`; a tail shorter than one element is left out.
    pub(crate) fn as_slice<T: Plain>(&self) -> &[T] {
        let len = self.len / size_of::<T>();
        // SAFETY: the mapping is at least `self.len` bytes, aligned to a page and so to `T`, initialised (the
        // system zeroes it), and any bits are a `T` by the contract of `Plain`. The borrow is that of `self`.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast(), len) }
    }

    /// As [`as_slice`](Self::as_slice), mutable.
    pub(crate) fn as_mut_slice<T: Plain>(&mut self) -> &mut [T] {
        let len = self.len / size_of::<T>();
        // SAFETY: as in `as_slice`; the borrow is exclusive because that of `self` is.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().cast(), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroed_aligned_and_typed() {
        for len in [0, 1, 7, 4096, (8 << 20) + 3] {
            let mut buf = Buf::zeroed(len).unwrap();
            assert_eq!(buf.len(), len);
            assert_eq!(buf.as_slice::<f32>().len(), len / 4);
            assert_eq!(buf.as_slice::<u8>().as_ptr() as usize % 64, 0);
            assert!(buf.as_slice::<u8>().iter().all(|&b| b == 0));
            buf.as_mut_slice::<u16>().fill(0x0102);
            assert!(buf.as_slice::<u16>().iter().all(|&b| b == 0x0102));
        }
    }

    #[test]
    fn untouched_memory_costs_nothing() {
        // Only address space is taken: touching the pages would take seconds and 4 GiB.
        assert!(Buf::zeroed(1 << 32).is_ok());
    }
}
