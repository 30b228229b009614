use std::collections::HashMap;

use super::Scheduler;
use crate::kv::KeyIsHash;
use crate::sequence::Phase;

impl Scheduler {
    /// Checks that every page is held by exactly those that list it, every row by one sequence, every sequence
    /// listed where its phase says, and every count equal to its sum.
    ///
    /// # Panics
    /// With what is wrong.
    pub fn check_invariants(&self) {
        self.check_pages();
        self.check_rows();
        self.check_lists();
        for (idx, seq) in self.seqs.iter() {
            let n = idx.0;
            assert!(seq.num_committed <= seq.num_scheduled, "sequence {n}: committed beyond scheduled");
            assert!(seq.planned_len() <= seq.max_len, "sequence {n} is planned past its end");
            assert_eq!(
                seq.num_slots,
                seq.pages.len() * self.config.page_size,
                "sequence {n}: slots, its pages'"
            );
            let num_unused = seq.num_slots.checked_sub(seq.num_scheduled);
            assert!(
                num_unused.is_some_and(|num| num < self.config.page_size),
                "sequence {n}: {} tokens scheduled in {} slots",
                seq.num_scheduled,
                seq.num_slots
            );
            assert!(seq.pages.len() <= self.config.max_pages_per_seq(), "sequence {n}: wider than its row");
            let steps = self.in_flight.iter().flat_map(|step| &step.parts);
            let (mut num_steps, mut q_len, mut num_samples) = (0, 0, 0);
            for part in steps.filter(|part| part.seq == idx) {
                num_steps += 1;
                q_len += part.q_len as usize;
                num_samples += u32::from(part.is_sampled);
            }
            assert_eq!(seq.num_in_flight, num_steps, "sequence {n}: counted steps in flight, found");
            assert_eq!(seq.num_scheduled - seq.num_committed, q_len, "sequence {n}: tokens in flight, found");
            assert_eq!(seq.num_pending, num_samples, "sequence {n}: pending tokens, samples in flight");
            match seq.phase {
                Phase::Waiting => {
                    assert!(
                        seq.pages.is_empty() && num_steps == 0,
                        "waiting sequence {n} holds pages or steps"
                    );
                }
                Phase::Running => {
                    let ends = seq.planned_len() == seq.max_len;
                    assert_eq!(seq.is_returning, ends, "sequence {n}: is returning, ends by its length");
                }
                Phase::Retracting | Phase::Ended => {
                    assert!(seq.is_returning && num_steps > 0, "sequence {n} should be gone");
                }
            }
        }
    }

    fn check_pages(&self) {
        let mut holders = vec![0; self.pool.num_pages()];
        let mut locked = Vec::new();
        for (idx, seq) in self.seqs.iter() {
            seq.pages.iter().for_each(|&page| holders[page as usize] += 1);
            if let Some(tree) = &self.tree {
                let path = tree.path(seq.node);
                assert_eq!(path, seq.pages[..seq.num_locked], "sequence {}: locked path, own pages", idx.0);
                locked.push(seq.node);
            }
            // A page that is written must have one writer and no reader beside it.
            for &page in &seq.pages[(seq.num_committed / self.config.page_size).min(seq.pages.len())..] {
                assert_eq!(self.pool.num_holders(page), 1, "sequence {} writes to shared page {page}", idx.0);
            }
        }
        if let Some(tree) = &self.tree {
            tree.count_holders(&mut holders);
            tree.check_invariants(&locked);
        }
        self.pool.check_invariants(&holders);
        let counters = self.counters();
        let used: usize = counters.pages_used + counters.pages_cached + counters.pages_free;
        assert_eq!(used, self.pool.num_pages(), "pages used, cached and free, pages of the pool");
    }

    fn check_rows(&self) {
        let mut owners = vec![0; self.config.max_running_req];
        let rows = self.seqs.iter().filter(|(_, seq)| seq.phase != Phase::Waiting).map(|(_, seq)| seq.row);
        for row in rows.chain(self.free_rows.iter().copied()) {
            owners[row as usize] += 1;
        }
        for (row, &num) in owners.iter().enumerate() {
            assert_eq!(num, 1, "row {row} has {num} owners, the list of free rows counted");
        }
    }

    fn check_lists(&self) {
        let (mut num_waiting, mut num_running, mut num_returning, mut num_alive) = (0, 0, 0, 0);
        let mut computing: HashMap<u64, u32, KeyIsHash> = HashMap::default();
        let mut num_live: HashMap<u64, usize> = HashMap::new();
        for (idx, seq) in self.seqs.iter() {
            num_waiting += usize::from(seq.phase == Phase::Waiting);
            num_running += usize::from(seq.phase == Phase::Running);
            num_returning += usize::from(seq.is_returning);
            if seq.phase != Phase::Waiting {
                let announced = seq.hashes.iter().skip(seq.num_published);
                announced.for_each(|&hash| *computing.entry(hash).or_insert(0) += 1);
            }
            if seq.phase != Phase::Ended {
                num_alive += 1;
                assert_eq!(
                    self.by_id.get(&seq.id),
                    Some(&idx),
                    "request {} is not found by its id",
                    seq.id.0
                );
            }
            if let Some(group) = seq.group {
                *num_live.entry(group).or_insert(0) += 1;
                let is_listed = self.groups[&group].running.contains(&idx);
                let is_sharer = seq.phase == Phase::Running;
                assert_eq!(is_listed, is_sharer, "sequence {}: listed in its group, runs", idx.0);
            }
        }
        assert_eq!(self.running.len(), num_running, "list of running sequences, running sequences");
        for &idx in &self.running {
            assert_eq!(self.seqs[idx].phase, Phase::Running, "sequence {} is listed as running", idx.0);
        }
        assert_eq!(self.waiting.len(), num_waiting, "queue, waiting sequences");
        let mut last = None;
        for (arrival, idx) in self.waiting.iter() {
            assert_eq!(self.seqs[idx].arrival, arrival, "queued sequence {}: arrival", idx.0);
            assert!(last < Some(arrival), "the queue is in the order of arrival");
            last = Some(arrival);
        }
        assert_eq!(self.num_returning, num_returning, "returning sequences: counted, found");
        assert_eq!(self.by_id.len(), num_alive, "ids, live sequences");
        assert_eq!(self.computing, computing, "announced pages, pages being computed");
        assert_eq!(self.groups.len(), num_live.len(), "groups, groups with live members");
        for (key, group) in &self.groups {
            assert_eq!(group.num_live, num_live[key], "members of a group: counted, found");
        }
    }
}
