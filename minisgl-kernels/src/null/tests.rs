use super::{Null, NullOptions};
use crate::{
    AttnSpec, Backend, CountReset, DType, KernelError, KvLayer, PageUpdate, Result, SampleParams, SeqState,
    StepInputs,
};

const VOCAB: usize = 97;
const SPEC: AttnSpec =
    AttnSpec { num_heads: 1, num_kv_heads: 1, head_dim: 4, scale: 0.5, window: None, page_size: 2 };

/// The ops of a step that matter to memory, with room for four rows of four pages.
struct Device {
    backend: Null,
    state: SeqState<Vec<u8>>,
    kv: Vec<KvLayer<Vec<u8>>>,
}

impl Device {
    fn new() -> Self {
        let mut backend = Null::new(NullOptions { vocab: VOCAB, checked: true });
        let state = backend.seq_state(4, 4, VOCAB).unwrap();
        let k = backend.tensor("k", DType::BF16, 16, 4).unwrap();
        let v = backend.tensor("v", DType::BF16, 16, 4).unwrap();
        Self { backend, state, kv: vec![KvLayer { k, v, page_size: 2 }] }
    }

    fn step(&mut self, step: &StepInputs) -> Result<Vec<u32>> {
        let Self { backend, state, kv } = self;
        let (rows, f32) = (16, DType::F32);
        let mut inputs = backend.inputs(rows, 4, 4)?;
        let mut plan = backend.attn_plan(&SPEC, rows, 4)?;
        let (table, rope) = (backend.tensor("table", f32, VOCAB, 8)?, backend.tensor("rope", f32, 8, 4)?);
        let (mut x, mut qkv) = (backend.tensor("x", f32, rows, 8)?, backend.tensor("qkv", f32, rows, 12)?);
        let mut out = backend.tensor("out", f32, rows, 4)?;
        let logits = backend.tensor("logits", f32, 4, VOCAB)?;
        let mut samples = backend.sample_buf(4)?;
        backend.begin_step(&mut inputs, step, state, kv)?;
        backend.plan_attention(&mut plan, &inputs, &SPEC)?;
        backend.embedding(&mut x, &table, &inputs, state)?;
        backend.rope_store_kv(&mut qkv, None, None, 1e-5, &rope, &inputs, &SPEC, &mut kv[0])?;
        backend.attention(&mut out, &qkv, &kv[0], &inputs, state, &plan, &SPEC)?;
        backend.sample(&mut samples, &logits, &inputs, state)?;
        let read_back = backend.read_back(&samples, step.num_samples(), false)?;
        Ok(backend.wait(read_back)?.tokens)
    }
}

/// One sequence of row 1: `tokens` from position `first` on, in `pages`, sampling after the last.
fn step(tokens: &[i32], first: u32, pages: &[u32]) -> StepInputs {
    let end = first + tokens.len() as u32;
    StepInputs {
        token_ids: tokens.to_vec(),
        positions: (first..end).collect(),
        slots: (first..end).map(|p| pages[p as usize / 2] * 2 + p % 2).collect(),
        cu_q_lens: vec![0, tokens.len() as u32],
        kv_lens: vec![end],
        seq_rows: vec![1],
        sample_tokens: vec![tokens.len() as u32 - 1],
        samples: vec![SampleParams { seed: 5, temperature: 1.0, ..SampleParams::greedy(1, end) }],
        page_updates: (0..).zip(pages).map(|(idx, &page)| PageUpdate { row: 1, idx, page }).collect(),
        ..StepInputs::default()
    }
}

fn message(result: Result<Vec<u32>>) -> String {
    result.expect_err("the fault is found").to_string()
}

#[test]
fn tokens_are_those_of_the_history_however_it_is_cut() {
    let options = NullOptions { vocab: VOCAB, checked: true };
    let sample = |end| SampleParams { seed: 5, temperature: 1.0, ..SampleParams::greedy(1, end) };
    let mut whole = Device::new();
    let first = whole.step(&step(&[3, 1, 4], 0, &[6, 2])).unwrap()[0];
    assert_eq!(first, options.next_token(&[3, 1, 4], &sample(3)));

    let mut cut = Device::new();
    cut.step(&step(&[3], 0, &[0])).unwrap();
    assert_eq!(cut.step(&step(&[1, 4], 1, &[0, 7])).unwrap()[0], first);
    // The sampled token, which only the device has seen.
    let second = cut.step(&step(&[-2], 3, &[0, 7])).unwrap()[0];
    assert_eq!(second, options.next_token(&[3, 1, 4, first], &sample(4)));
}

#[test]
fn the_token_depends_on_every_token_the_seed_and_the_position() {
    let options = NullOptions { vocab: 1 << 30, checked: true };
    let sample = SampleParams { seed: 5, temperature: 1.0, ..SampleParams::greedy(0, 3) };
    let token = options.next_token(&[1, 2, 3], &sample);
    assert_ne!(token, options.next_token(&[0, 2, 3], &sample));
    assert_ne!(token, options.next_token(&[2, 1, 3], &sample));
    assert_ne!(token, options.next_token(&[1, 2, 3], &SampleParams { seed: 6, ..sample }));
    assert_ne!(token, options.next_token(&[1, 2, 3], &SampleParams { position: 4, ..sample }));
    let greedy = SampleParams { temperature: 0.0, ..sample };
    assert_eq!(
        options.next_token(&[1, 2, 3], &greedy),
        options.next_token(&[1, 2, 3], &SampleParams { seed: 6, ..greedy })
    );
}

#[test]
fn a_page_that_was_never_stored_is_found() {
    let mut device = Device::new();
    let message = message(device.step(&step(&[4], 2, &[0, 1])));
    assert!(message.contains("position 0 of row 1 is read from slot 0, which was never stored"), "{message}");
}

#[test]
fn a_page_of_another_position_is_found() {
    let mut device = Device::new();
    device.step(&step(&[3, 1, 4, 1], 0, &[0, 1])).unwrap();
    let message = message(device.step(&step(&[5], 4, &[1, 0, 2])));
    assert!(message.contains("slot 2, which holds position 2"), "{message}");
}

#[test]
fn a_page_of_another_history_is_found() {
    let mut device = Device::new();
    device.step(&step(&[3, 1, 4, 1], 0, &[0, 1])).unwrap();
    device.step(&step(&[2, 7, 1, 8], 0, &[2, 3])).unwrap();
    let message = message(device.step(&step(&[5], 4, &[0, 3, 4])));
    assert!(message.contains("slot 6, which holds token 1 of another history"), "{message}");
}

#[test]
fn a_slot_that_the_page_table_does_not_lead_to_is_found() {
    let mut device = Device::new();
    let mut inputs = step(&[3, 1], 0, &[0]);
    inputs.slots[1] = 9;
    let error = device.step(&inputs).unwrap_err();
    assert!(matches!(error, KernelError::Shape { what: "slot", expected: 1, found: 9, .. }), "{error}");
}

#[test]
fn two_rows_that_write_one_slot_are_found() {
    let mut device = Device::new();
    let mut inputs = step(&[3], 0, &[0]);
    inputs.token_ids.push(4);
    inputs.positions.push(0);
    inputs.slots.push(0);
    inputs.cu_q_lens.push(2);
    inputs.kv_lens.push(1);
    inputs.seq_rows.push(2);
    inputs.page_updates.push(PageUpdate { row: 2, idx: 0, page: 0 });
    let message = message(device.step(&inputs));
    assert!(message.contains("slot 0 is written by rows 1 and 2"), "{message}");
}

#[test]
fn a_page_beyond_the_row_of_the_table_is_found() {
    let mut device = Device::new();
    let mut inputs = step(&[3], 0, &[0]);
    inputs.page_updates.push(PageUpdate { row: 1, idx: 4, page: 1 });
    let error = device.step(&inputs).unwrap_err();
    assert!(
        matches!(error, KernelError::Index { what: "page_updates.idx", found: 4, limit: 4, .. }),
        "{error}"
    );
}

#[test]
fn copied_pages_serve_the_copy() {
    let mut device = Device::new();
    device.step(&step(&[3, 1, 4], 0, &[0, 1])).unwrap();
    let mut inputs = step(&[9], 3, &[0, 5]);
    inputs.page_copies.push((1, 5));
    let token = device.step(&inputs).unwrap()[0];
    let options = NullOptions { vocab: VOCAB, checked: true };
    assert_eq!(token, options.next_token(&[3, 1, 4, 9], &inputs.samples[0]));
}

#[test]
fn penalty_counts_of_the_row_before_are_found() {
    let mut device = Device::new();
    let with_penalty = |mut inputs: StepInputs, reset: bool| {
        inputs.samples[0].presence_penalty = 1.0;
        if reset {
            inputs.count_resets = vec![CountReset { row: 1, num_prompt: 2, tokens: vec![3, 1] }];
        }
        inputs
    };
    device.step(&with_penalty(step(&[3, 1], 0, &[0]), true)).unwrap();
    device.step(&with_penalty(step(&[-2], 2, &[0, 1]), false)).unwrap();
    let message = message(device.step(&with_penalty(step(&[3, 1], 0, &[0]), false)));
    assert!(message.contains("generated tokens in token_counts is 2, expected 0"), "{message}");
}
