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

/// Where the host's time of one step goes.
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
        }
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
        let expected =
            StepTimes { schedule: micros(2), launch: micros(1), wait: micros(10), commit: micros(5) };
        assert_eq!(stats.mean_step(), expected);
    }
}
