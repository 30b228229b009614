//! Tables of measurements beside the limits of the machine, as text, JSON and Markdown.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use minisgl_engine::config::Device;
use minisgl_kernels::Backend;
use minisgl_kernels::cpu::{Cpu, CpuOptions, probe};
use serde_json::json;

/// What the machine can do at best, measured.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Device name.
    pub device: String,
    /// Bytes read from memory a second.
    pub bytes_per_s: f64,
    /// Floating-point operations a second.
    pub flops_per_s: f64,
    /// What the operations are.
    pub flops_name: &'static str,
}

impl Limits {
    /// Measures the device that the engine would take.
    ///
    /// # Errors
    /// If the device cannot be used.
    pub fn measure(device: Device) -> Result<Self, String> {
        match device {
            Device::Cpu | Device::Auto => {
                let cpu = Cpu::new(CpuOptions::default()).map_err(|error| error.to_string())?;
                Ok(Self {
                    device: cpu.device_name(),
                    bytes_per_s: probe::read_bandwidth(&cpu),
                    flops_per_s: probe::fma_rate(&cpu),
                    flops_name: "f32 FMA rate",
                })
            }
            Device::Cuda(_) => Err(format!("the limits of device {device} cannot be measured by this build")),
        }
    }
}

/// One measurement.
#[derive(Clone, Debug)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// The median.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// The same as rates.
    pub rate: String,
    /// Share of the limit, 1 at best.
    pub share: f64,
    /// Which limit.
    pub limit: &'static str,
}

/// A table under way: rows are printed as they come.
pub struct Report {
    name: &'static str,
    limits: Limits,
    rows: Vec<Row>,
}

impl Report {
    /// Prints the limits.
    pub fn new(name: &'static str, limits: &Limits) -> Self {
        println!("{}", limits.device);
        println!("{}", limits_line(limits));
        Self { name, limits: limits.clone(), rows: Vec::new() }
    }

    /// Prints one row and keeps it.
    pub fn add(&mut self, row: Row) {
        let Row { name, value, unit, rate, share, limit } = &row;
        println!("{name:<52} {value:>10.2} {unit:<12} {rate:<26} {:>5.1} % of {limit}", share * 100.0);
        self.rows.push(row);
    }

    /// Writes `<name>-<device>.json` and `.md` to `dir`, if there is one.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn finish(self, dir: Option<&Path>) -> std::io::Result<()> {
        let Some(dir) = dir else { return Ok(()) };
        std::fs::create_dir_all(dir)?;
        let commit = commit();
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        let date = date(seconds);
        let command = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
        let rows: Vec<_> = self.rows.iter().map(Row::to_json).collect();
        let file = json!({
            "device": self.limits.device,
            "date": date,
            "commit": commit,
            "arguments": command,
            "limits": { "bytes_per_s": self.limits.bytes_per_s, "flops_per_s": self.limits.flops_per_s },
            "rows": rows,
        });
        let device = self.limits.device.split([' ', ':']).next().unwrap_or("device");
        let path = dir.join(format!("{}-{device}", self.name));
        std::fs::write(path.with_extension("json"), format!("{file:#}\n"))?;

        let mut text = format!("# {}: {}\n\n", self.name, self.limits.device);
        let _ = writeln!(text, "{}. {date}, commit {commit}, `{command}`.\n", limits_line(&self.limits));
        text.push_str("| what | median | | rate | share of the limit |\n|---|---:|---|---|---|\n");
        for row in &self.rows {
            let Row { name, value, unit, rate, share, limit } = row;
            let _ = writeln!(
                text,
                "| {name} | {value:.2} | {unit} | {rate} | {:.1} % of {limit} |",
                share * 100.0
            );
        }
        std::fs::write(path.with_extension("md"), text)?;
        println!("written: {}", path.with_extension("{json,md}").display());
        Ok(())
    }
}

impl Row {
    fn to_json(&self) -> serde_json::Value {
        let Self { name, value, unit, rate, share, limit } = self;
        json!({ "name": name, "value": value, "unit": unit, "rate": rate, "share": share, "limit": limit })
    }
}

fn limits_line(limits: &Limits) -> String {
    let (bytes, flops) = (limits.bytes_per_s / 1e9, limits.flops_per_s / 1e9);
    format!("measured limits: {bytes:.1} GB/s read, {flops:.0} GFLOP/s {}", limits.flops_name)
}

fn commit() -> String {
    let output = Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12"]).output();
    let text = output.ok().filter(|output| output.status.success()).map(|output| output.stdout);
    text.map_or_else(|| "unknown".into(), |text| String::from_utf8_lossy(&text).trim().to_owned())
}

/// `YYYY-MM-DD` in UTC (Howard Hinnant's days-to-civil algorithm).
fn date(seconds: u64) -> String {
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    #[test]
    fn dates() {
        assert_eq!(super::date(0), "1970-01-01");
        assert_eq!(super::date(951_782_400), "2000-02-29");
        assert_eq!(super::date(1_795_305_600), "2026-11-22");
    }
}
