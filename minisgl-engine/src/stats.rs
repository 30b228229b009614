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
}
