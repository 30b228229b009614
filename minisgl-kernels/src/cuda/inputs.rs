//! A step's inputs: packed on the host, uploaded in one copy beside the step that is running, then unpacked in
//! order to the addresses that captured graphs read.
//!
//! The copy keeps the bus out of the device's time between two steps. A kernel that reads the host's memory in its place
//! spares the host a copy and three calls for events, and was tried: on an H200 each step took 4 to 6 us longer at batch 1.

use super::Cuda;
use super::bindings::{
    msgl_begin_step, msgl_begin_step_params, msgl_copy_pages, msgl_copy_pages_params, msgl_reset_counts,
    msgl_reset_counts_params, msgl_sample_scratch_bytes, msgl_sample_spec,
};
use super::device::Event;
use super::layout::{Layout, Tail};
use super::memory::{DeviceBuf, PinnedBuf};
use super::step_check::{self, Extent, Limits};
use crate::{
    CountReset, KernelError, KvLayer, PADDING, PageUpdate, Result, SampleParams, SeqState, StepInputs,
};
use cudarc::driver::sys;

const OP: &str = "begin_step";

/// A step's inputs on the device.
pub struct CudaInputs {
    /// What the ops read; laid out by `layout`.
    buf: DeviceBuf,
    /// Chunk results of sampling.
    pub(crate) sample_scratch: DeviceBuf,
    /// One for the step being planned, one for the step in flight.
    staging: [Staging; 2],
    next_staging: usize,
    max_tokens: usize,
    max_seqs: usize,
    max_samples: usize,
    pub(crate) layout: Layout,
    pub(crate) extent: Extent,
}

/// The two ends of an upload.
struct Staging {
    pinned: PinnedBuf,
    device: DeviceBuf,
    /// The copy has ended: the host may write `pinned`.
    uploaded: Event,
    /// The step has unpacked it: the copy may write `device`.
    consumed: Event,
}

impl Staging {
    fn new(cuda: &Cuda, size_bytes: usize) -> Result<Self> {
        let staging = Self {
            pinned: PinnedBuf::new(&cuda.device, size_bytes)?,
            device: DeviceBuf::zeroed(&cuda.device, &cuda.stream, "step staging", size_bytes)?,
            uploaded: Event::new(&cuda.device, false)?,
            consumed: Event::new(&cuda.device, false)?,
        };
        // The zeros come on another stream than the first upload, which they must not overtake.
        staging.consumed.record(&cuda.stream)?;
        Ok(staging)
    }
}

impl CudaInputs {
    pub(crate) fn new(cuda: &Cuda, max_tokens: usize, max_seqs: usize, max_samples: usize) -> Result<Self> {
        let largest = Layout::new(max_tokens, max_seqs, max_samples).size_bytes;
        // Room for a page-table change of each token, which is what pages of one token ask for at most.
        let staging_bytes = largest + 12 * (max_tokens + max_seqs) + 4096;
        // SAFETY: a pure function.
        let scratch_bytes = max_samples * unsafe { msgl_sample_scratch_bytes() };
        let zeroed = |what, size_bytes| DeviceBuf::zeroed(&cuda.device, &cuda.stream, what, size_bytes);
        Ok(Self {
            buf: zeroed("step inputs", largest)?,
            sample_scratch: zeroed("sampling scratch", scratch_bytes)?,
            staging: [Staging::new(cuda, staging_bytes)?, Staging::new(cuda, staging_bytes)?],
            next_staging: 0,
            max_tokens,
            max_seqs,
            max_samples,
            layout: Layout::new(0, 0, 0),
            extent: Extent::default(),
        })
    }

    /// `[num_tokens]` i32.
    pub(crate) fn token_ids(&self) -> *const i32 {
        self.buf.at(self.layout.token_ids)
    }

    /// `[num_tokens]` u32.
    pub(crate) fn positions(&self) -> *const u32 {
        self.buf.at(self.layout.positions)
    }

    /// `[num_tokens]` u32.
    pub(crate) fn slots(&self) -> *const u32 {
        self.buf.at(self.layout.slots)
    }

    /// `[num_seqs + 1]` u32.
    pub(crate) fn cu_q_lens(&self) -> *const u32 {
        self.buf.at(self.layout.cu_q_lens)
    }

    /// `[num_seqs]` u32.
    pub(crate) fn kv_lens(&self) -> *const u32 {
        self.buf.at(self.layout.kv_lens)
    }

    /// `[num_seqs]` u32; 0 for sequences without queries.
    pub(crate) fn seq_rows(&self) -> *const u32 {
        self.buf.at(self.layout.seq_rows)
    }

    /// `[num_samples]` u32; [`PADDING`] for padding samples.
    pub(crate) fn sample_tokens(&self) -> *const u32 {
        self.buf.at(self.layout.sample_tokens)
    }

    /// `[num_samples]`.
    pub(crate) fn samples(&self) -> *const msgl_sample_spec {
        self.buf.at(self.layout.samples)
    }
}

/// Writes `values` to `bytes` at `offset` in the device's byte order, which is the host's.
fn put<const N: usize>(bytes: &mut [u8], offset: usize, values: impl Iterator<Item = [u8; N]>) {
    let (chunks, _) = bytes[offset..].as_chunks_mut();
    chunks.iter_mut().zip(values).for_each(|(chunk, value)| *chunk = value);
}

/// The bytes of a `msgl_sample_spec`.
fn sample_bytes(s: &SampleParams) -> [u8; super::layout::SAMPLE_BYTES] {
    let words = [
        s.seq_row,
        s.position,
        s.seed as u32,
        (s.seed >> 32) as u32,
        s.temperature.to_bits(),
        s.top_k as u32,
        s.top_p.to_bits(),
        s.min_p.to_bits(),
        s.presence_penalty.to_bits(),
        s.frequency_penalty.to_bits(),
        s.repetition_penalty.to_bits(),
        s.num_logprobs as u32,
    ];
    *words.map(u32::to_le_bytes).as_flattened().first_chunk().expect("a word for each field")
}

/// Packs the sections. Whatever the step leaves undefined in its padding becomes a harmless value here.
fn pack_sections(bytes: &mut [u8], layout: &Layout, src: &StepInputs) {
    let token = |(&id, &slot): (&i32, &u32)| if slot == PADDING { 0 } else { id }.to_le_bytes();
    let position = |(&p, &slot): (&u32, &u32)| if slot == PADDING { 0 } else { p }.to_le_bytes();
    put(bytes, layout.token_ids, src.token_ids.iter().zip(&src.slots).map(token));
    put(bytes, layout.positions, src.positions.iter().zip(&src.slots).map(position));
    put(bytes, layout.slots, src.slots.iter().map(|s| s.to_le_bytes()));
    put(bytes, layout.cu_q_lens, src.cu_q_lens.iter().map(|n| n.to_le_bytes()));
    let of_queries = |(&n, ends): (&u32, &[u32])| if ends[0] < ends[1] { n } else { 0 }.to_le_bytes();
    put(bytes, layout.kv_lens, src.kv_lens.iter().zip(src.cu_q_lens.windows(2)).map(of_queries));
    put(bytes, layout.seq_rows, src.seq_rows.iter().zip(src.cu_q_lens.windows(2)).map(of_queries));
    let sample_token =
        |(&t, s): (&u32, &SampleParams)| if s.seq_row == PADDING { PADDING } else { t }.to_le_bytes();
    put(bytes, layout.sample_tokens, src.sample_tokens.iter().zip(&src.samples).map(sample_token));
    put(bytes, layout.samples, src.samples.iter().map(sample_bytes));
}

/// Packs the lists that are applied at once.
fn pack_tail(
    bytes: &mut [u8],
    tail: &Tail,
    src: &StepInputs,
    updates: &[PageUpdate],
    resets: &[&CountReset],
) {
    let words = updates.iter().flat_map(|u| [u.row, u.idx, u.page]);
    put(bytes, tail.page_updates, words.map(u32::to_le_bytes));
    let words = src.page_copies.iter().flat_map(|&(from, to)| [from, to]);
    put(bytes, tail.page_copies, words.map(u32::to_le_bytes));
    let mut first = 0;
    let words = resets.iter().flat_map(|r| {
        let entry = [r.row, r.num_prompt, first, r.tokens.len() as u32];
        first += r.tokens.len() as u32;
        entry
    });
    put(bytes, tail.count_resets, words.map(u32::to_le_bytes));
    let tokens = resets.iter().flat_map(|r| r.tokens.iter().map(|t| t.to_le_bytes()));
    put(bytes, tail.reset_tokens, tokens);
}

/// See [`Backend::begin_step`](crate::Backend::begin_step).
pub(crate) fn begin_step(
    cuda: &mut Cuda,
    dst: &mut CudaInputs,
    src: &StepInputs,
    state: &mut SeqState<DeviceBuf>,
    kv: &mut [KvLayer<DeviceBuf>],
) -> Result<()> {
    cuda.outside_capture(OP)?;
    let limits = Limits {
        max_tokens: dst.max_tokens,
        max_seqs: dst.max_seqs,
        max_samples: dst.max_samples,
        max_rows: state.max_rows,
        max_pages: state.max_pages,
        vocab: state.vocab,
        slots: kv.iter().map(|layer| (layer.k.rows.min(layer.v.rows), layer.page_size)).min(),
    };
    dst.extent = step_check::check(src, &limits)?;
    cuda.lengths.begin_step(dst.extent.max_kv_len);
    dst.layout = Layout::new(src.num_tokens(), src.num_seqs(), src.num_samples());
    let tail = Tail::new(&dst.layout, src);
    let updates = step_check::last_updates(&src.page_updates, state.max_rows);
    let resets = step_check::last_resets(&src.count_resets);

    let index = dst.next_staging;
    dst.next_staging = (index + 1) % dst.staging.len();
    dst.staging[index].uploaded.wait(OP)?;
    if tail.size_bytes > dst.staging[index].pinned.size_bytes() {
        // A prompt of unusual length has its penalties counted. Dropping the old memory waits for its readers.
        dst.staging[index] = Staging::new(cuda, tail.size_bytes.next_power_of_two())?;
    }
    let staging = &mut dst.staging[index];
    let bytes = staging.pinned.bytes_mut();
    pack_sections(bytes, &dst.layout, src);
    pack_tail(bytes, &tail, src, &updates, &resets);

    cuda.copy_stream.wait(&staging.consumed)?;
    // SAFETY: both ends hold at least `tail.size_bytes`; the host does not touch `pinned` before `uploaded`, and
    // the device side is free since `consumed`.
    let copied = unsafe {
        sys::cuMemcpyHtoDAsync_v2(
            staging.device.ptr(),
            staging.pinned.as_ptr(),
            tail.size_bytes,
            cuda.copy_stream.raw(),
        )
    };
    cuda.device.check(OP, copied.result())?;
    staging.uploaded.record(&cuda.copy_stream)?;
    cuda.stream.wait(&staging.uploaded)?;

    let params = msgl_begin_step_params {
        inputs: dst.buf.as_ptr(),
        staging: staging.device.as_ptr(),
        page_table: state.page_table.as_ptr(),
        page_updates: staging.device.at(tail.page_updates),
        inputs_bytes: dst.layout.size_bytes as u64,
        num_page_updates: updates.len() as u32,
        max_rows: state.max_rows as u32,
        max_pages: state.max_pages as u32,
    };
    // SAFETY: the sections fit the inputs' buffer, which was sized for the largest counts that `check` lets
    // through; the updates lie in the staging buffer; the page table has max_rows * max_pages entries.
    unsafe { cuda.launch(OP, &params, msgl_begin_step)? };
    if !resets.is_empty() {
        reset_counts(cuda, state, &staging.device, &tail, &resets)?;
    }
    copy_pages(cuda, kv, &staging.device, &tail, &src.page_copies)?;
    staging.consumed.record(&cuda.stream)
}

fn reset_counts(
    cuda: &Cuda,
    state: &mut SeqState<DeviceBuf>,
    staging: &DeviceBuf,
    tail: &Tail,
    resets: &[&CountReset],
) -> Result<()> {
    let params = msgl_reset_counts_params {
        token_counts: state.token_counts.as_ptr(),
        resets: staging.at(tail.count_resets),
        tokens: staging.at(tail.reset_tokens),
        num_resets: resets.len() as u32,
        max_rows: state.max_rows as u32,
        vocab: state.vocab as u32,
        max_tokens: resets.iter().map(|r| r.tokens.len()).max().unwrap_or(0) as u32,
    };
    // SAFETY: rows and tokens were checked against the sizes of `token_counts`; the lists lie in the staging
    // buffer, no two of one row.
    unsafe { cuda.launch(OP, &params, msgl_reset_counts) }
}

fn copy_pages(
    cuda: &Cuda,
    kv: &mut [KvLayer<DeviceBuf>],
    staging: &DeviceBuf,
    tail: &Tail,
    copies: &[(u32, u32)],
) -> Result<()> {
    let mut first = 0;
    for len in step_check::independent_runs(copies) {
        for layer in kv.iter_mut() {
            let page_bytes = |t: &crate::Tensor<DeviceBuf>| layer.page_size * t.cols * t.dtype.size_bytes();
            if page_bytes(&layer.k) != page_bytes(&layer.v) {
                return Err(KernelError::Shape {
                    op: OP,
                    what: "bytes of a page of v",
                    expected: page_bytes(&layer.k),
                    found: page_bytes(&layer.v),
                });
            }
            let params = msgl_copy_pages_params {
                k: layer.k.buf.as_ptr(),
                v: layer.v.buf.as_ptr(),
                pairs: staging.at(tail.page_copies + 8 * first),
                page_bytes: page_bytes(&layer.k) as u64,
                num_pairs: len as u32,
                num_pages: (layer.k.rows.min(layer.v.rows) / layer.page_size) as u32,
            };
            // SAFETY: the pages were checked against the smallest layer; within a run no copy meets another.
            unsafe { cuda.launch(OP, &params, msgl_copy_pages)? };
        }
        first += len;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Offsets of the fields as the C struct has them, against the hand-written packing.
    #[test]
    fn a_packed_sample_is_the_c_struct() {
        let sample = SampleParams {
            seq_row: 1,
            position: 2,
            seed: 0x0403_0201_0807_0605,
            temperature: 0.5,
            top_k: -1,
            top_p: 0.25,
            min_p: 0.125,
            presence_penalty: 1.5,
            frequency_penalty: 2.5,
            repetition_penalty: 3.5,
            num_logprobs: 7,
        };
        let bytes = sample_bytes(&sample);
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        use std::mem::offset_of;
        assert_eq!(word(offset_of!(msgl_sample_spec, seq_row)), 1);
        assert_eq!(word(offset_of!(msgl_sample_spec, position)), 2);
        let seed = offset_of!(msgl_sample_spec, seed);
        assert_eq!(u64::from_le_bytes(bytes[seed..seed + 8].try_into().unwrap()), sample.seed);
        assert_eq!(word(offset_of!(msgl_sample_spec, temperature)), 0.5f32.to_bits());
        assert_eq!(word(offset_of!(msgl_sample_spec, top_k)), u32::MAX);
        assert_eq!(word(offset_of!(msgl_sample_spec, top_p)), 0.25f32.to_bits());
        assert_eq!(word(offset_of!(msgl_sample_spec, min_p)), 0.125f32.to_bits());
        assert_eq!(word(offset_of!(msgl_sample_spec, presence_penalty)), 1.5f32.to_bits());
        assert_eq!(word(offset_of!(msgl_sample_spec, frequency_penalty)), 2.5f32.to_bits());
        assert_eq!(word(offset_of!(msgl_sample_spec, repetition_penalty)), 3.5f32.to_bits());
        assert_eq!(word(offset_of!(msgl_sample_spec, num_logprobs)), 7);
    }

    #[test]
    fn padding_is_made_harmless() {
        let src = StepInputs {
            token_ids: vec![5, -77],
            positions: vec![1, 1_000_000],
            slots: vec![3, PADDING],
            cu_q_lens: vec![0, 1, 1],
            kv_lens: vec![2, 9],
            seq_rows: vec![1, 1_000_000],
            sample_tokens: vec![0, 1_000_000],
            samples: vec![SampleParams::greedy(1, 2), SampleParams::greedy(PADDING, 0)],
            ..Default::default()
        };
        let layout = Layout::new(2, 2, 2);
        let mut bytes = vec![0xff; layout.size_bytes];
        pack_sections(&mut bytes, &layout, &src);
        let words = |at: usize| {
            let word = |i: usize| u32::from_le_bytes(bytes[at + 4 * i..][..4].try_into().unwrap());
            [word(0), word(1)]
        };
        assert_eq!(words(layout.token_ids), [5, 0]);
        assert_eq!(words(layout.positions), [1, 0]);
        assert_eq!(words(layout.slots), [3, PADDING]);
        assert_eq!(words(layout.kv_lens), [2, 0]);
        assert_eq!(words(layout.seq_rows), [1, 0]);
        assert_eq!(words(layout.sample_tokens), [0, PADDING]);
    }
}
