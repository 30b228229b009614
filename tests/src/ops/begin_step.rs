use minisgl_kernels::{Backend, CountReset, DType, KvLayer, PageUpdate, StepInputs};
use proptest::prelude::*;

use super::support::{Failure, Guarded, Rng, Words, dtype, one_of, same_bits};
use super::{CheckConfig, OpCases, fixed, no_bench, property};

/// Page-table updates, count resets and page copies, on top of garbage.
pub(super) fn cases<B: Backend>() -> OpCases<B> {
    OpCases { name: "begin_step", check, bench: no_bench }
}

#[derive(Clone, Debug)]
struct Case {
    dtype: DType,
    vocab: usize,
    page_size: usize,
    layers: usize,
    kv_cols: usize,
    updates: usize,
    resets: usize,
    copies: usize,
    seed: u64,
}

fn strategy() -> impl Strategy<Value = Case> {
    let vocab = one_of(&[1, 2, 33, 1000]);
    let page_size = one_of(&[1, 2, 4, 16, 64, 256]);
    let kv_cols = one_of(&[2, 6, 64, 256]);
    (dtype(), vocab, page_size, 1..4usize, kv_cols, 0..12usize, 0..4usize, 0..4usize, any::<u64>()).prop_map(
        |(dtype, vocab, page_size, layers, kv_cols, updates, resets, copies, seed)| Case {
            dtype,
            vocab,
            page_size,
            layers,
            kv_cols,
            updates,
            resets,
            copies,
            seed,
        },
    )
}

const MAX_ROWS: usize = 5;
const MAX_PAGES: usize = 7;
const NUM_PAGES: usize = 9;

fn check<B: Backend>(backend: &mut B, config: &CheckConfig) -> Result<(), String> {
    property(backend, config, strategy(), check_case)?;
    fixed(backend, "a count that stops at its largest value", check_saturation)
}

fn check_case<B: Backend>(backend: &mut B, _: &CheckConfig, case: &Case) -> Result<(), Failure> {
    let &Case { dtype, vocab, page_size, layers, kv_cols, updates, resets, copies, seed } = case;
    let mut rng = Rng::new(seed);
    let mut state = backend.seq_state(MAX_ROWS, MAX_PAGES, vocab)?;
    let mut table: Vec<u32> = (0..MAX_ROWS * MAX_PAGES).map(|_| rng.bits() as u32).collect();
    let mut counts: Vec<u16> = (0..MAX_ROWS * vocab).map(|_| rng.bits() as u16).collect();
    let last_tokens: Vec<u32> = (0..MAX_ROWS).map(|_| rng.bits() as u32).collect();
    Words::write_u32(backend, &mut state.page_table, &table)?;
    Words::write_u16(backend, &mut state.token_counts, &counts)?;
    Words::write_u32(backend, &mut state.last_tokens, &last_tokens)?;

    let num_slots = NUM_PAGES * page_size;
    let mut storage = Vec::new();
    for _ in 0..2 * layers {
        storage.push(Guarded::new(
            backend,
            dtype,
            num_slots,
            kv_cols,
            &rng.activations(num_slots * kv_cols),
        )?);
    }
    let mut expected: Vec<Vec<f64>> = storage.iter().map(Guarded::written).collect();
    let mut inputs = backend.inputs(4, 4, 4)?;

    // Two steps through the same host memory, which is overwritten as soon as a call returns.
    let mut step = StepInputs::default();
    for _ in 0..2 {
        step.clear();
        step.cu_q_lens.push(0);
        for cell in rng.distinct(updates, MAX_ROWS * MAX_PAGES) {
            let (row, idx) = (cell / MAX_PAGES as u32, cell % MAX_PAGES as u32);
            let page = rng.below(NUM_PAGES) as u32;
            step.page_updates.push(PageUpdate { row, idx, page });
            table[cell as usize] = page;
        }
        for row in rng.distinct(resets, MAX_ROWS) {
            let tokens: Vec<u32> = (0..rng.below(40)).map(|_| rng.below(vocab) as u32).collect();
            let num_prompt = rng.below(tokens.len() + 1) as u32;
            let own = &mut counts[row as usize * vocab..][..vocab];
            own.fill(0);
            for (i, &token) in tokens.iter().enumerate() {
                let count = &mut own[token as usize];
                *count = if i < num_prompt as usize { *count | 0x8000 } else { *count + 1 };
            }
            step.count_resets.push(CountReset { row, num_prompt, tokens });
        }
        // Sources may repeat, as when one prompt has several completions.
        let pages = rng.distinct(NUM_PAGES, NUM_PAGES);
        for &to in &pages[4..4 + copies] {
            let from = pages[rng.below(4)];
            step.page_copies.push((from, to));
            let page_elements = page_size * kv_cols;
            for data in &mut expected {
                let from = from as usize * page_elements;
                data.copy_within(from..from + page_elements, to as usize * page_elements);
            }
        }
        let mut tensors: Vec<KvLayer<B::Buf>> = Vec::new();
        let mut guards = std::mem::take(&mut storage).into_iter();
        let mut bytes = Vec::new();
        while let (Some(k), Some(v)) = (guards.next(), guards.next()) {
            let ((k, k_bytes), (v, v_bytes)) = (k.split(), v.split());
            tensors.push(KvLayer { k, v, page_size });
            bytes.extend([k_bytes, v_bytes]);
        }
        backend.begin_step(&mut inputs, &step, &mut state, &mut tensors)?;
        step.page_updates.iter_mut().for_each(|update| update.page = u32::MAX);
        step.count_resets.iter_mut().for_each(|reset| reset.tokens.fill(u32::MAX));
        step.page_copies.fill((0, 0));
        let tensors = tensors.into_iter().flat_map(|layer| [layer.k, layer.v]);
        storage = tensors.zip(bytes).map(|(tensor, bytes)| Guarded::join(tensor, bytes)).collect();

        if Words::read_u32(backend, &state.page_table, table.len())? != table {
            return Err(Failure::wrong("page_table differs"));
        }
        if Words::read_u16(backend, &state.token_counts, counts.len())? != counts {
            return Err(Failure::wrong("token_counts differ"));
        }
        if Words::read_u32(backend, &state.last_tokens, MAX_ROWS)? != last_tokens {
            return Err(Failure::wrong("last_tokens changed"));
        }
        for (i, (found, expected)) in storage.iter_mut().zip(&expected).enumerate() {
            let found = found.read_rows(backend, "kv", num_slots)?;
            same_bits(&format!("tensor {i} of the KV storage"), &found, expected)?;
        }
    }
    Ok(())
}

fn check_saturation<B: Backend>(backend: &mut B) -> Result<(), Failure> {
    let mut state = backend.seq_state(1, 1, 3)?;
    let mut inputs = backend.inputs(1, 1, 1)?;
    let tokens = [vec![1], vec![1; 33_000], vec![2; 5]].concat();
    let step = StepInputs {
        cu_q_lens: vec![0],
        count_resets: vec![CountReset { row: 0, num_prompt: 1, tokens }],
        ..StepInputs::default()
    };
    backend.begin_step(&mut inputs, &step, &mut state, &mut [])?;
    let found = Words::read_u16(backend, &state.token_counts, 3)?;
    if found != [0, 0xFFFF, 5] {
        return Err(Failure::wrong(format!("token_counts are {found:x?}, expected [0, ffff, 5]")));
    }
    Ok(())
}
