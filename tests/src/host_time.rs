//! What the host does in a decode step, beside the device.

use std::fmt::Write as _;
use std::time::Duration;

use minisgl_engine::StepTimes;
use serde_json::{Value, json};

/// What the figures of a table are.
pub const EXPLANATION: &str = "Wall time of the engine's thread in one turn of its loop, which launches a decode step \
    and hands out the tokens of the one before, in us: medians over the steps, each column for itself. `host` is all but \
    waiting for the device, with its mean and what 90 % of the steps stay below. With overlap the device computes meanwhile.";

/// Host time of a number of like steps.
#[derive(Clone, Debug)]
pub struct HostTime {
    name: String,
    steps: Vec<StepTimes>,
}

/// A column of a table: its name, and its time of a step.
type Part = (&'static str, fn(&StepTimes) -> Duration);

const PARTS: [Part; 6] = [
    ("host", host),
    ("schedule", |step| step.schedule),
    ("launch", |step| step.launch),
    ("commit", |step| step.commit),
    ("other", |step| step.other),
    ("wait", |step| step.wait),
];

/// All that the host does itself.
fn host(step: &StepTimes) -> Duration {
    step.schedule + step.launch + step.commit + step.other
}

impl HostTime {
    /// Of `steps`, in any order; `name` says what they are.
    pub fn new(name: String, steps: Vec<StepTimes>) -> Self {
        Self { name, steps }
    }

    /// Of `of` in microseconds: what `share` of the steps stay below. Not a number without steps.
    fn quantile(&self, share: f64, of: fn(&StepTimes) -> Duration) -> f64 {
        let mut times: Vec<Duration> = self.steps.iter().map(of).collect();
        times.sort_unstable();
        let at = ((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1));
        times.get(at).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
    }

    /// Mean of all that the host does itself, in microseconds. Not a number without steps.
    fn mean(&self) -> f64 {
        self.steps.iter().map(|step| host(step).as_secs_f64() * 1e6).sum::<f64>() / self.steps.len() as f64
    }

    /// One line, for people.
    pub fn line(&self) -> String {
        let mut line = format!("{}: {} steps, us:", self.name, self.steps.len());
        for (name, of) in PARTS {
            let _ = write!(line, " {name} {:.1}", self.quantile(0.5, of));
        }
        let _ = write!(line, ", host mean {:.1}, 90 % {:.1}", self.mean(), self.quantile(0.9, host));
        line
    }

    /// All figures.
    pub fn to_json(&self) -> Value {
        let mut us = serde_json::Map::new();
        for (name, of) in PARTS {
            us.insert(name.into(), json!(self.quantile(0.5, of)));
        }
        us.insert("host_mean".into(), json!(self.mean()));
        us.insert("host_90".into(), json!(self.quantile(0.9, host)));
        json!({ "name": self.name, "steps": self.steps.len(), "us": us })
    }

    /// A table of several, with what it means; nothing where there are none.
    pub fn markdown(all: &[Self]) -> String {
        if all.is_empty() {
            return String::new();
        }
        let mut text = format!("\n## Host time of a decode step\n\n{EXPLANATION}\n\n| what |");
        PARTS.iter().for_each(|(name, _)| text.push_str(&format!(" {name} |")));
        text.push_str(" mean host | 90 % | steps |\n|---|");
        text.push_str(&"---:|".repeat(PARTS.len() + 3));
        text.push('\n');
        for host_time in all {
            let _ = write!(text, "| {} |", host_time.name);
            PARTS
                .iter()
                .for_each(|&(_, of)| text.push_str(&format!(" {:.1} |", host_time.quantile(0.5, of))));
            let (mean, most) = (host_time.mean(), host_time.quantile(0.9, host));
            let _ = writeln!(text, " {mean:.1} | {most:.1} | {} |", host_time.steps.len());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_each_part_and_of_the_whole() {
        let micros = Duration::from_micros;
        let step = |schedule, launch, commit, wait| StepTimes {
            schedule: micros(schedule),
            launch: micros(launch),
            wait: micros(wait),
            commit: micros(commit),
            other: micros(1),
        };
        let steps = vec![step(1, 30, 5, 900), step(3, 11, 6, 700), step(2, 20, 70, 800)];
        let host_time = HostTime::new("three".into(), steps);
        let line = "three: 3 steps, us: host 37.0 schedule 2.0 launch 20.0 commit 6.0 other 1.0 wait 800.0, \
                    host mean 50.3, 90 % 93.0";
        assert_eq!(host_time.line(), line);
        assert_eq!(host_time.to_json()["us"]["host"], 37.0);
        let table = HostTime::markdown(&[host_time]);
        assert!(
            table.ends_with("| three | 37.0 | 2.0 | 20.0 | 6.0 | 1.0 | 800.0 | 50.3 | 93.0 | 3 |\n"),
            "{table}"
        );
        assert_eq!(HostTime::markdown(&[]), "");
    }
}
