use std::collections::VecDeque;
use std::time::Duration;

use crate::scheduler::Counters;

/// Counters of a running engine, as of its last step.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// What the scheduler counts: sequences, pages, tokens, prefix hits, preemptions.
    pub counters: Counters,
    /// Host time in planning steps.
    pub schedule_time: Duration,
    /// Host time in launching steps; on the CPU this is the computation itself.
    pub launch_time: Duration,
    /// Host time in waiting for results.
    pub wait_time: Duration,
    /// Host time in taking results in and handing tokens out.
    pub commit_time: Duration,
    /// Time in which there was a request to work on.
    pub busy_time: Duration,
}

/// Where the host's time of one step goes: of one turn of the loop, which with overlap launches a step and commits the
/// one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepTimes {
    /// Planning it.
    pub schedule: Duration,
    /// Launching it; on the CPU this is the computation itself.
    pub launch: Duration,
    /// Waiting for its results.
    pub wait: Duration,
    /// Taking its results in and handing its tokens out.
    pub commit: Duration,
    /// The rest of the turn: taking commands and publishing counters.
    pub other: Duration,
}

/// One turn of the engine's loop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepRecord {
    /// Sequences in the step that it launched; 0 where it launched none.
    pub num_seqs: usize,
    /// Whether each of them computed one token.
    pub is_decode: bool,
    /// Where its time went.
    pub times: StepTimes,
}

/// The latest turns of the engine's loop.
#[derive(Debug, Default)]
pub(crate) struct StepLog {
    records: VecDeque<StepRecord>,
}

impl StepLog {
    /// Turns that are remembered.
    pub(crate) const CAPACITY: usize = 1024;

    pub(crate) fn push(&mut self, record: StepRecord) {
        if self.records.len() == Self::CAPACITY {
            self.records.pop_front();
        }
        self.records.push_back(record);
    }

    /// Oldest first.
    pub(crate) fn to_vec(&self) -> Vec<StepRecord> {
        self.records.iter().copied().collect()
    }
}

impl Stats {
    /// Share of the prompt tokens that did not have to be computed, from 0 to 1; 0 before the first prompt.
    pub fn prefix_hit_rate(&self) -> f64 {
        let Counters { prefix_hit_tokens, prefix_lookup_tokens, .. } = self.counters;
        prefix_hit_tokens as f64 / prefix_lookup_tokens.max(1) as f64
    }

    /// Output tokens a second of the time in which there was something to do; 0 before the first step.
    pub fn output_tokens_per_s(&self) -> f64 {
        self.per_s(self.counters.output_tokens)
    }

    /// Prompt tokens computed (of preempted requests more than once) a second of the time in which there was
    /// something to do; 0 before the first step.
    pub fn prompt_tokens_per_s(&self) -> f64 {
        self.per_s(self.counters.prompt_tokens)
    }

    /// The mean over all steps; zero before the first.
    pub fn mean_step(&self) -> StepTimes {
        let each = |time: Duration| match self.counters.steps {
            0 => Duration::ZERO,
            steps => Duration::from_nanos((time.as_nanos() / u128::from(steps)) as u64),
        };
        StepTimes {
            schedule: each(self.schedule_time),
            launch: each(self.launch_time),
            wait: each(self.wait_time),
            commit: each(self.commit_time),
            other: each(
                self.busy_time.saturating_sub(
                    self.schedule_time + self.launch_time + self.wait_time + self.commit_time,
                ),
            ),
        }
    }

    /// Adds a turn of the loop, and gives `times` what is left of it.
    pub(crate) fn add(&mut self, turn: Duration, times: &mut StepTimes) {
        let StepTimes { schedule, launch, wait, commit, .. } = *times;
        times.other = turn.saturating_sub(schedule + launch + wait + commit);
        self.schedule_time += schedule;
        self.launch_time += launch;
        self.wait_time += wait;
        self.commit_time += commit;
        self.busy_time += turn;
    }

    fn per_s(&self, num_tokens: u64) -> f64 {
        match self.busy_time.as_secs_f64() {
            0.0 => 0.0,
            seconds => num_tokens as f64 / seconds,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_means() {
        assert_eq!(Stats::default().mean_step(), StepTimes::default());
        assert_eq!((Stats::default().prefix_hit_rate(), Stats::default().output_tokens_per_s()), (0.0, 0.0));
        let counters = Counters {
            steps: 4,
            prefix_lookup_tokens: 40,
            prefix_hit_tokens: 10,
            output_tokens: 6,
            prompt_tokens: 30,
            ..Counters::default()
        };
        let micros = Duration::from_micros;
        let stats = Stats {
            counters,
            schedule_time: micros(8),
            launch_time: micros(4),
            wait_time: micros(40),
            commit_time: micros(20),
            busy_time: Duration::from_millis(1500),
        };
        assert_eq!(stats.prefix_hit_rate(), 0.25);
        assert_eq!((stats.output_tokens_per_s(), stats.prompt_tokens_per_s()), (4.0, 20.0));
        let expected = StepTimes {
            schedule: micros(2),
            launch: micros(1),
            wait: micros(10),
            commit: micros(5),
            other: micros(375_000 - 18),
        };
        assert_eq!(stats.mean_step(), expected);
    }

    #[test]
    fn a_log_keeps_the_latest_steps() {
        let mut log = StepLog::default();
        for num_seqs in 0..StepLog::CAPACITY + 3 {
            log.push(StepRecord { num_seqs, ..StepRecord::default() });
        }
        let kept: Vec<usize> = log.to_vec().iter().map(|record| record.num_seqs).collect();
        assert_eq!(kept, (3..StepLog::CAPACITY + 3).collect::<Vec<_>>());
    }
}
