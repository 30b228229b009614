use crate::config::CacheType;
use crate::error::{EngineError, Result};

/// What a [`super::Scheduler`] schedules for.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    /// Pages of the KV storage.
    pub num_pages: usize,
    /// Tokens in a page: a power of two from 1 to 256.
    pub page_size: usize,
    /// Sequences that hold a page-table row at a time.
    pub max_running_req: usize,
    /// Prompt tokens of a step. Sequences in decode are not counted in it.
    pub max_extend_tokens: usize,
    /// Longest sequence of the model, prompt and output together.
    pub max_seq_len: usize,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Ids that end an output.
    pub eos_token_ids: Vec<u32>,
    /// Prefix cache.
    pub cache_type: CacheType,
}

impl SchedulerConfig {
    /// Tokens that a step has at most: a full chunk, and one token for each sequence in decode.
    pub fn max_step_tokens(&self) -> usize {
        self.max_extend_tokens + self.max_running_req
    }

    /// Columns of the page table: whole pages that cover the longest sequence.
    pub fn max_pages_per_seq(&self) -> usize {
        self.max_seq_len.div_ceil(self.page_size)
    }

    pub(super) fn check(&self) -> Result<()> {
        let invalid = |message: String| Err(EngineError::InvalidConfig(message));
        if !self.page_size.is_power_of_two() || self.page_size > 256 {
            return invalid(format!("page_size is {}, must be a power of two from 1 to 256", self.page_size));
        }
        for (name, value) in [
            ("num_pages", self.num_pages),
            ("max_running_req", self.max_running_req),
            ("max_extend_tokens", self.max_extend_tokens),
            ("vocab", self.vocab),
        ] {
            // Tokens, and rows as -1 - row, travel as i32.
            if value < 1 || value > i32::MAX as usize {
                return invalid(format!("{name} is {value}, must be from 1 to {}", i32::MAX));
            }
        }
        if self.max_seq_len < 2 || self.max_seq_len > i32::MAX as usize {
            let found = self.max_seq_len;
            return invalid(format!(
                "max_seq_len is {found}, must be from 2 (a prompt and an output) to {}",
                i32::MAX
            ));
        }
        // Slots are u32, and the largest one marks padding.
        if self.num_pages * self.page_size >= u32::MAX as usize {
            let (pages, size) = (self.num_pages, self.page_size);
            return invalid(format!(
                "num_pages {pages} x page_size {size} is {} slots, must be below {}",
                pages * size,
                u32::MAX
            ));
        }
        Ok(())
    }
}
