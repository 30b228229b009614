//! The list of query blocks, made once a step for all layers.

use super::{MAX_ROWS, OP};
use crate::cpu::CpuInputs;
use crate::cpu::check::{below, equal};
use crate::cpu::rope_store_kv::check_spec;
use crate::{AttnSpec, Result};

/// Consecutive queries of one sequence.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub(super) seq: u32,
    /// Packed index of the first query.
    pub(super) first_token: u32,
    /// Its position in the sequence.
    pub(super) first_position: u32,
    pub(super) num_queries: u32,
}

/// What the attention calls of one step share: the query blocks, longest first.
#[derive(Debug)]
pub struct CpuAttnPlan {
    pub(super) blocks: Vec<Block>,
    /// Products of the whole call, about.
    pub(super) work: usize,
    group_size: usize,
    num_tokens: usize,
    max_blocks: usize,
}

impl CpuAttnPlan {
    pub(in crate::cpu) fn new(spec: &AttnSpec, max_tokens: usize, max_seqs: usize) -> Result<Self> {
        check_spec("attn_plan", spec)?;
        // Each sequence has at most one block that is not full.
        let max_blocks = max_tokens / queries_per_block(spec) + max_seqs;
        Ok(Self {
            blocks: Vec::with_capacity(max_blocks),
            work: 0,
            group_size: spec.num_heads / spec.num_kv_heads,
            num_tokens: 0,
            max_blocks,
        })
    }

    pub(in crate::cpu) fn plan(&mut self, inputs: &CpuInputs, spec: &AttnSpec) -> Result<()> {
        check_spec("plan_attention", spec)?;
        self.blocks.clear();
        self.work = 0;
        self.group_size = spec.num_heads / spec.num_kv_heads;
        self.num_tokens = inputs.num_tokens();
        let most = queries_per_block(spec) as u32;
        for seq in 0..inputs.num_seqs() {
            let (start, end) = (inputs.cu_q_lens[seq], inputs.cu_q_lens[seq + 1]);
            let first_position = inputs.kv_lens[seq].saturating_sub(end - start);
            let mut done = 0;
            while done < end - start {
                let num_queries = most.min(end - start - done);
                let first_position = first_position + done;
                self.blocks.push(Block {
                    seq: seq as u32,
                    first_token: start + done,
                    first_position,
                    num_queries,
                });
                let seen = first_position as usize + num_queries as usize;
                self.work +=
                    num_queries as usize * spec.q_cols() * seen.min(spec.window.map_or(seen, |w| w as usize));
                done += num_queries;
            }
        }
        below("plan_attention", "query blocks", self.max_blocks + 1, self.blocks.len())?;
        // Threads take blocks in this order: the long ones first, so that the last to finish is a short one.
        self.blocks.sort_unstable_by_key(|block| std::cmp::Reverse((block.first_position, block.seq)));
        Ok(())
    }

    /// The plan is one of these inputs and of a layer of this shape.
    pub(super) fn check(&self, inputs: &CpuInputs, spec: &AttnSpec) -> Result<()> {
        equal(OP, "group size of the plan", spec.num_heads / spec.num_kv_heads, self.group_size)?;
        equal(OP, "tokens of the plan", inputs.num_tokens(), self.num_tokens)?;
        for block in &self.blocks {
            // A plan of another step could name what these inputs do not have.
            below(OP, "sequence of the plan", inputs.num_seqs(), block.seq as usize)?;
            let end = inputs.cu_q_lens[block.seq as usize + 1] as usize;
            below(OP, "token of the plan", end + 1, (block.first_token + block.num_queries) as usize)?;
            let seen = (block.first_position + block.num_queries) as usize;
            below(OP, "position of the plan", inputs.kv_lens[block.seq as usize] as usize + 1, seen)?;
        }
        Ok(())
    }
}

fn queries_per_block(spec: &AttnSpec) -> usize {
    (MAX_ROWS / (spec.num_heads / spec.num_kv_heads)).max(1)
}
