//! How much memory the engine may hold, and how many KV pages that leaves. Integers only: no device.

use minisgl_kernels::Memory;

/// What a process needs on a GPU before it allocates anything: the driver's context, the code of kernels and
/// libraries, workspaces. More than this in use when the engine starts belongs to others.
const MOST_CONTEXT_BYTES: usize = 1 << 30;

/// A bound on all that the engine holds of a device that it may fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Footprint {
    /// Free when the engine started.
    free_at_start: usize,
    /// What it may take of that.
    pub(crate) limit_bytes: usize,
}

impl Footprint {
    /// A share of the whole device, less what this process took before the engine asked: a context counts too.
    pub(crate) fn new(at_start: Memory, memory_ratio: f64) -> Self {
        let context = at_start.total_bytes.saturating_sub(at_start.free_bytes).min(MOST_CONTEXT_BYTES);
        let share = (at_start.total_bytes as f64 * memory_ratio) as usize;
        let limit_bytes = share.saturating_sub(context).min(at_start.free_bytes);
        Self { free_at_start: at_start.free_bytes, limit_bytes }
    }

    /// What the engine has taken since it started.
    pub(crate) fn held_bytes(&self, now: Memory) -> usize {
        self.free_at_start.saturating_sub(now.free_bytes)
    }

    /// KV pages that fit beside what is held now and `reserve_bytes` that will be.
    pub(crate) fn num_pages(&self, now: Memory, reserve_bytes: usize, page_bytes: usize) -> usize {
        self.limit_bytes.saturating_sub(self.held_bytes(now)).saturating_sub(reserve_bytes) / page_bytes
    }

    /// How far the engine is beyond its bound; 0 within it.
    pub(crate) fn excess_bytes(&self, now: Memory) -> usize {
        self.held_bytes(now).saturating_sub(self.limit_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: usize = 1 << 30;

    fn memory(free_bytes: usize) -> Memory {
        Memory { total_bytes: 80 * GIB, free_bytes }
    }

    #[test]
    fn the_context_counts() {
        let footprint = Footprint::new(memory(79 * GIB + GIB / 2), 0.5);
        assert_eq!(footprint.limit_bytes, 39 * GIB + GIB / 2);
    }

    #[test]
    fn what_others_hold_does_not_count() {
        let footprint = Footprint::new(memory(50 * GIB), 0.5);
        assert_eq!(footprint.limit_bytes, 39 * GIB);
        // And cannot be had.
        assert_eq!(Footprint::new(memory(10 * GIB), 0.5).limit_bytes, 10 * GIB);
    }

    #[test]
    fn pages_fill_what_is_left() {
        let footprint = Footprint::new(memory(80 * GIB), 0.5);
        let now = memory(60 * GIB);
        assert_eq!(footprint.held_bytes(now), 20 * GIB);
        assert_eq!(footprint.num_pages(now, 0, GIB), 20);
        assert_eq!(footprint.num_pages(now, GIB + 1, GIB), 18);
        assert_eq!(footprint.num_pages(now, 21 * GIB, GIB), 0);
        assert_eq!(footprint.excess_bytes(now), 0);
        assert_eq!(footprint.excess_bytes(memory(39 * GIB)), GIB);
    }
}
