//! Loading and filling of weights.

use super::buf::{Buf, Plain};
use super::check::{Disjoint, below, equal, names, rows_mut};
use super::simd::{Element, Kernel, LANES, Simd, dispatch, store_any};
use super::{Cpu, with_element};
use crate::{DType, Result, Tensor};

pub(super) fn load_rows(
    cpu: &Cpu,
    dst: &mut Tensor<Buf>,
    first_row: usize,
    src: &[u8],
    src_dtype: DType,
) -> Result<()> {
    const OP: &str = "load_rows";
    let cols = dst.cols;
    let row_bytes = cols * src_dtype.size_bytes();
    let num_rows = src.len().checked_div(row_bytes).unwrap_or(0);
    equal(OP, "src.len()", num_rows * row_bytes, src.len())?;
    below(OP, "first_row + rows of src", dst.rows + 1, first_row.saturating_add(num_rows))?;
    let start = first_row * cols;
    let (same, isa) = (dst.dtype == src_dtype, cpu.isa);
    with_element!(dst.dtype, D => {
        let rows = dst.rows;
        let dst = &mut rows_mut::<D>(names!(OP, "dst"), dst, rows, cols)?[start..start + num_rows * cols];
        let dst = Disjoint::new(dst);
        with_element!(src_dtype, S => {
            let size = size_of::<S>();
            cpu.for_items(num_rows * cols, 1, &|range| {
                let src = &src[range.start * size..range.end * size];
                // SAFETY: the ranges of different items do not overlap.
                let dst = unsafe { dst.get(range.start, range.len()) };
                if same {
                    bytes_mut(dst).copy_from_slice(src);
                } else {
                    dispatch(isa, Convert::<S, D> { src, dst, from: std::marker::PhantomData });
                }
            });
        });
    });
    Ok(())
}

/// The bytes of plain numbers.
fn bytes_mut<T: Plain>(slice: &mut [T]) -> &mut [u8] {
    // SAFETY: plain numbers have no padding, any bytes are valid for them, and the borrow is exclusive.
    unsafe { std::slice::from_raw_parts_mut(slice.as_mut_ptr().cast(), size_of_val(slice)) }
}

/// Converts little-endian elements, which need not be aligned.
struct Convert<'a, S, D> {
    src: &'a [u8],
    dst: &'a mut [D],
    from: std::marker::PhantomData<S>,
}

impl<E: Element, D: Element> Kernel for Convert<'_, E, D> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (src, dst) in self.src.chunks(LANES * size_of::<E>()).zip(self.dst.chunks_mut(LANES)) {
            let mut aligned = [E::ZERO; LANES];
            bytes_mut(&mut aligned)[..src.len()].copy_from_slice(src);
            store_any(s, E::load(s, &aligned), dst);
        }
    }
}

/// Fills with uniform noise: element `i` depends on `seed` and `i` alone.
pub(super) fn fill_random(cpu: &Cpu, dst: &mut Tensor<Buf>, mean: f32, std: f32, seed: u64) -> Result<()> {
    let (rows, cols, isa) = (dst.rows, dst.cols, cpu.isa);
    with_element!(dst.dtype, D => {
        let dst = rows_mut::<D>(names!("fill_random", "dst"), dst, rows, cols)?;
        let len = dst.len();
        let dst = Disjoint::new(dst);
        cpu.pool.for_chunks(len, BLOCK, &|_, range| {
            // SAFETY: the ranges of different items do not overlap.
            let dst = unsafe { dst.get(range.start, range.len()) };
            dispatch(isa, Fill { dst, first_block: range.start / BLOCK, mean, std, seed });
        });
    });
    Ok(())
}

/// Elements from one vector of counters: sixteen of them with four numbers of 32 bits each, cut in halves.
const BLOCK: usize = LANES * 8;

struct Fill<'a, D> {
    dst: &'a mut [D],
    first_block: usize,
    mean: f32,
    std: f32,
    seed: u64,
}

impl<D: Element> Kernel for Fill<'_, D> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // A uniform distribution of width 1 has the standard deviation 1 / sqrt(12). Of n = 2^16 steps the
        // middles are taken, so that the mean is exact.
        let step = s.splat(self.std * 12f32.sqrt() / 65_536.0);
        let low = s.splat(self.mean - self.std * 3f32.sqrt() * (1.0 - 1.0 / 65_536.0));
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        for (block, dst) in self.dst.chunks_mut(BLOCK).enumerate() {
            let words = philox_lanes(s, (self.first_block + block) as u64 * LANES as u64, key);
            for (half, dst) in dst.chunks_mut(LANES).enumerate() {
                let word = words[half / 2];
                let bits = if half % 2 == 0 { s.shr::<16>(word) } else { s.and(word, s.splat_u32(0xffff)) };
                store_any(s, s.fma(s.i32_to_f32(bits), step, low), dst);
            }
        }
    }
}

/// [`crate::philox::philox4x32_10`] at the sixteen counters from `first` on.
#[inline(always)]
fn philox_lanes<S: Simd>(s: S, first: u64, key: [u32; 2]) -> [S::U; 4] {
    super::sample::noise::philox(s, counters(s, first), s.splat_u32((first >> 32) as u32), key)
}

/// The low words of the counters; `first` is a multiple of 16, so they do not carry.
#[inline(always)]
fn counters<S: Simd>(s: S, first: u64) -> S::U {
    s.add_u32(s.splat_u32(first as u32), s.load_u32(&std::array::from_fn(|i| i as u32)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Backend;
    use crate::cpu::{CpuOptions, Isa};
    use crate::philox::philox4x32_10;
    use half::{bf16, f16};

    #[test]
    fn noise_has_its_moments_and_does_not_depend_on_isa_or_threads() {
        let mut first: Option<Vec<u32>> = None;
        for isa in Isa::available() {
            for threads in [1, 3] {
                let mut cpu = Cpu::new(CpuOptions { threads: Some(threads), isa: Some(isa) }).unwrap();
                let mut tensor = cpu.tensor("noise", DType::F32, 123, 457).unwrap();
                cpu.fill_random(&mut tensor, 0.5, 2.0, 7).unwrap();
                let x = &tensor.buf.as_slice::<f32>()[..123 * 457];
                let n = x.len() as f64;
                let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
                let var = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
                // Five standard errors of the mean and of the variance (whose kurtosis factor is 0.8).
                assert!((mean - 0.5).abs() < 5.0 * 2.0 / n.sqrt(), "mean {mean}");
                assert!((var - 4.0).abs() < 5.0 * 4.0 * (0.8 / n).sqrt(), "variance {var}");
                let rounded: Vec<u32> = x.iter().map(|x| (x * 1000.0).round() as i32 as u32).collect();
                match &first {
                    None => first = Some(rounded),
                    // Without FMA the last bit differs.
                    Some(first) => {
                        let differing = first.iter().zip(&rounded).filter(|(a, b)| a != b).count();
                        assert!(differing < x.len() / 1000, "{isa}: {differing} differ");
                    }
                }
            }
        }
    }

    #[test]
    fn noise_is_that_of_the_scalar_generator() {
        let mut cpu = Cpu::new(CpuOptions::default()).unwrap();
        let mut tensor = cpu.tensor("noise", DType::F32, 1, 1000).unwrap();
        let seed = 0x1234_5678_9abc_def0u64;
        cpu.fill_random(&mut tensor, 0.0, 1.0, seed).unwrap();
        for (i, &x) in tensor.buf.as_slice::<f32>().iter().enumerate() {
            let (block, half, lane) = (i / BLOCK, i % BLOCK / LANES, i % LANES);
            let counter = (block * LANES + lane) as u32;
            let word = philox4x32_10([counter, 0, 0, 0], [seed as u32, (seed >> 32) as u32])[half / 2];
            let bits = if half % 2 == 0 { word >> 16 } else { word & 0xffff };
            let expected = (f64::from(bits) + 0.5 - 32_768.0) / 65_536.0 * 12f64.sqrt();
            assert!((f64::from(x) - expected).abs() < 1e-6, "element {i}");
        }
    }

    #[test]
    fn rows_are_converted_wherever_they_lie() {
        let values: Vec<f32> = (0..33 * 5).map(|i| i as f32 * 0.37 - 20.0).collect();
        let mut cpu = Cpu::new(CpuOptions::default()).unwrap();
        for from in DType::ALL {
            for to in DType::ALL {
                let mut bytes = vec![0u8];
                for &x in &values {
                    match from {
                        DType::BF16 => bytes.extend(bf16::from_f32(x).to_le_bytes()),
                        DType::F16 => bytes.extend(f16::from_f32(x).to_le_bytes()),
                        DType::F32 => bytes.extend(x.to_le_bytes()),
                    }
                }
                let mut tensor = cpu.tensor("rows", to, 8, 33).unwrap();
                // From an odd address.
                cpu.load_rows(&mut tensor, 2, &bytes[1..], from).unwrap();
                let narrow = |x: f32, dtype| match dtype {
                    DType::BF16 => bf16::from_f32(x).to_f32(),
                    DType::F16 => f16::from_f32(x).to_f32(),
                    DType::F32 => x,
                };
                for i in 0..8 * 33 {
                    let found = match to {
                        DType::BF16 => tensor.buf.as_slice::<bf16>()[i].to_f32(),
                        DType::F16 => tensor.buf.as_slice::<f16>()[i].to_f32(),
                        DType::F32 => tensor.buf.as_slice::<f32>()[i],
                    };
                    let loaded = (2 * 33..7 * 33).contains(&i);
                    let expected = if loaded { narrow(narrow(values[i - 66], from), to) } else { 0.0 };
                    assert_eq!(found, expected, "{from} to {to}, element {i}");
                }
                assert!(cpu.load_rows(&mut tensor, 4, &bytes[1..], from).is_err());
                assert!(cpu.load_rows(&mut tensor, 0, &bytes[2..], from).is_err());
            }
        }
    }
}
