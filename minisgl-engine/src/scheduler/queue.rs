use std::collections::VecDeque;

use crate::batch::SeqIdx;

/// Waiting sequences in the order of arrival. A preempted one comes back to its place.
#[derive(Debug, Default)]
pub(super) struct Queue {
    entries: VecDeque<(u64, SeqIdx)>,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The `at`-th in the order of arrival.
    pub(super) fn get(&self, at: usize) -> Option<SeqIdx> {
        self.entries.get(at).map(|&(_, seq)| seq)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, SeqIdx)> + '_ {
        self.entries.iter().copied()
    }

    /// Puts a sequence in its place.
    pub(super) fn push(&mut self, arrival: u64, seq: SeqIdx) {
        let at = self.entries.partition_point(|&(other, _)| other < arrival);
        self.entries.insert(at, (arrival, seq));
    }

    /// Takes out the sequence with this `arrival`.
    pub(super) fn remove(&mut self, arrival: u64) {
        let at = self.entries.partition_point(|&(other, _)| other < arrival);
        assert_eq!(self.entries[at].0, arrival, "a waiting sequence is in the queue");
        self.entries.remove(at);
        // A burst of a million requests should not be paid for until the end of the process.
        if self.entries.capacity() > 4 * self.entries.len() + 1024 {
            self.entries.shrink_to(2 * self.entries.len());
        }
    }
}
