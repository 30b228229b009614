//! Causal attention over paged KV.
//!
//! A task is a block of consecutive queries of one sequence under one KV head; its rows are the block's queries
//! times the query heads of the group. It walks the sequence in tiles of [`TILE`] positions that start at
//! multiples of [`TILE`], wherever pages, chunks or windows begin, with an online softmax (Milakov, Gimelshein
//! 2018; Dao et al. 2022) for each row. What a row adds up, and in which order, depends on its own position
//! alone: its bits do not change with the page size, with how the prompt was cut or with its neighbours.

mod gather;
mod plan;
mod softmax;
mod task;
mod tile;

use std::sync::atomic::{AtomicUsize, Ordering};

use super::buf::Buf;
use super::check::{Disjoint, dtype, equal, names, numbers, rows, rows_mut};
use super::rope_store_kv::check_spec;
use super::scratch::lock;
use super::simd::dispatch;
use super::{Cpu, CpuInputs, check, with_element};
use crate::{AttnSpec, KernelError, KvLayer, Result, SeqState, Tensor};
use gather::Pages;
pub use plan::CpuAttnPlan;
use task::{Run, Task};

const OP: &str = "attention";

/// Positions that are scored at a time.
const TILE: usize = 64;

/// Rows of scores that are computed at a time where vectors are one register.
const ROWS: usize = 6;

/// Rows of a task: enough to share the gathering of a tile of keys and values, few enough that queries, sums
/// and the tile stay in the second-level cache.
const MAX_ROWS: usize = 96;

pub(super) fn attention(
    cpu: &Cpu,
    out: &mut Tensor<Buf>,
    qkv: &Tensor<Buf>,
    kv: &KvLayer<Buf>,
    inputs: &CpuInputs,
    state: &SeqState<Buf>,
    plan: &CpuAttnPlan,
    spec: &AttnSpec,
) -> Result<()> {
    check_spec(OP, spec)?;
    dtype(names!(OP, "out"), qkv.dtype, out)?;
    dtype(names!(OP, "kv.k"), qkv.dtype, &kv.k)?;
    dtype(names!(OP, "kv.v"), qkv.dtype, &kv.v)?;
    equal(OP, "kv.page_size", spec.page_size, kv.page_size)?;
    equal(OP, "kv.v.rows", kv.k.rows, kv.v.rows)?;
    plan.check(inputs, spec)?;
    let table = numbers::<u32>(OP, "state.page_table", &state.page_table, state.max_rows * state.max_pages)?;
    for seq in 0..inputs.num_seqs() {
        if inputs.cu_q_lens[seq + 1] > inputs.cu_q_lens[seq] {
            let pages = (inputs.kv_lens[seq] as usize).div_ceil(spec.page_size);
            check::below(OP, "pages of kv_lens", state.max_pages + 1, pages)?;
            check::below(OP, "seq_rows", state.max_rows, inputs.seq_rows[seq] as usize)?;
        }
    }
    let num_slots = kv.k.rows;
    let (isa, thread_scratch) = (cpu.isa, &cpu.thread_scratch);
    let bad_page = AtomicUsize::new(usize::MAX);
    with_element!(qkv.dtype, E => {
        let queries = rows::<E>(names!(OP, "qkv"), qkv, inputs.num_tokens(), spec.qkv_cols())?;
        let keys = rows::<E>(names!(OP, "kv.k"), &kv.k, num_slots, spec.kv_cols())?;
        let values = rows::<E>(names!(OP, "kv.v"), &kv.v, num_slots, spec.kv_cols())?;
        let out = rows_mut::<E>(names!(OP, "out"), out, inputs.num_tokens(), spec.q_cols())?;
        let out = Disjoint::new(out);
        let num_tasks = plan.blocks.len() * spec.num_kv_heads;
        let run_task = |thread: usize, task: usize| {
            let block = plan.blocks[task / spec.num_kv_heads];
            let seq = block.seq as usize;
            let row = &table[inputs.seq_rows[seq] as usize * state.max_pages..][..state.max_pages];
            let pages = Pages { table: row, page_size: spec.page_size, num_slots, bad_page: &bad_page };
            let mut scratch = lock(&thread_scratch[thread]);
            let task = Task {
                spec,
                kv_head: task % spec.num_kv_heads,
                first_token: block.first_token as usize,
                first_position: block.first_position as usize,
                num_queries: block.num_queries as usize,
                queries,
                keys,
                values,
                pages,
                out,
            };
            dispatch(isa, Run { task, scratch: &mut scratch.work });
        };
        if plan.work < MIN_PARALLEL_WORK {
            (0..num_tasks).for_each(|task| run_task(0, task));
        } else {
            let next = AtomicUsize::new(0);
            cpu.pool.run(&|thread| {
                loop {
                    let task = next.fetch_add(1, Ordering::Relaxed);
                    if task >= num_tasks {
                        break;
                    }
                    run_task(thread, task);
                }
            });
        }
    });
    match bad_page.into_inner() {
        usize::MAX => Ok(()),
        found => {
            let limit = num_slots / spec.page_size;
            Err(KernelError::Index { op: OP, what: "page table entry", found, limit })
        }
    }
}

/// Products below which a second thread costs more than it saves.
const MIN_PARALLEL_WORK: usize = 1 << 16;
