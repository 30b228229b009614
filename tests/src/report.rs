//! Tables of measurements beside the limits of the machine, as text, JSON and Markdown.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use minisgl_engine::config::Device;
use minisgl_kernels::Backend;
use minisgl_kernels::cpu::{Cpu, CpuOptions, probe};
use serde_json::json;

use crate::host_time::{self, HostTime};
use crate::roofline::{self, Point};

/// What the machine can do at best, measured.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Device name.
    pub device: String,
    /// Bytes from memory a second.
    pub bytes_per_s: f64,
    /// What the bytes are: those read by a CPU's cores, those read and written by a GPU's copy.
    pub bytes_name: &'static str,
    /// Floating-point operations a second.
    pub flops_per_s: f64,
    /// What the operations are.
    pub flops_name: &'static str,
}

impl Limits {
    /// Measures the device that the engine would take.
    ///
    /// # Errors
    /// If the device cannot be used, or this program was built without the feature `cuda` for it.
    pub fn measure(device: Device) -> Result<Self, String> {
        match device {
            #[cfg(feature = "cuda")]
            Device::Auto if minisgl_kernels::cuda::num_devices() > 0 => Self::measure_cuda(0),
            #[cfg(feature = "cuda")]
            Device::Cuda(ordinal) => Self::measure_cuda(ordinal),
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(_) => Err(format!("device {device} needs a program built with the feature cuda")),
            Device::Cpu | Device::Auto => {
                let cpu = Cpu::new(CpuOptions::default()).map_err(|error| error.to_string())?;
                Ok(Self {
                    device: cpu.device_name(),
                    bytes_per_s: probe::read_bandwidth(&cpu),
                    bytes_name: "read bandwidth",
                    flops_per_s: probe::fma_rate(&cpu),
                    flops_name: "f32 FMA rate",
                })
            }
        }
    }

    #[cfg(feature = "cuda")]
    fn measure_cuda(ordinal: usize) -> Result<Self, String> {
        use minisgl_kernels::cuda::{Cuda, CudaOptions, probe};
        let measure = || {
            let mut cuda = Cuda::open(CudaOptions { ordinal, ..CudaOptions::default() })?;
            Ok(Self {
                device: cuda.device_name(),
                bytes_per_s: probe::copy_bandwidth(&mut cuda)?,
                bytes_name: "copy bandwidth",
                flops_per_s: probe::gemm_rate(&mut cuda)?,
                flops_name: "bf16 GEMM rate",
            })
        };
        measure().map_err(|error: minisgl_kernels::KernelError| error.to_string())
    }
}

/// What had to be done at least, and how long it took.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Bytes read and written.
    pub bytes: f64,
    /// Floating-point operations, a multiply-add being two.
    pub flops: f64,
    /// Seconds.
    pub seconds: f64,
}

impl Work {
    /// The share of the nearer limit, 1 at best, and that limit's name.
    pub fn share(&self, limits: &Limits) -> (f64, &'static str) {
        let of_bytes = self.bytes / self.seconds / limits.bytes_per_s;
        let of_flops = self.flops / self.seconds / limits.flops_per_s;
        if of_bytes >= of_flops { (of_bytes, limits.bytes_name) } else { (of_flops, limits.flops_name) }
    }
}

/// One measurement.
#[derive(Clone, Debug)]
pub struct Row {
    /// What has one colour in the plot: an op, a model.
    pub series: String,
    /// What was measured.
    pub name: String,
    /// The median.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// The same as rates.
    pub rate: String,
    /// Share of a limit, 1 at best, and which.
    pub share: Option<(f64, &'static str)>,
    /// Its place in the roofline plot.
    pub work: Option<Work>,
}

/// A table under way: rows are printed as they come.
pub struct Report {
    name: &'static str,
    limits: Limits,
    rows: Vec<Row>,
    host_times: Vec<HostTime>,
}

impl Report {
    /// Prints the limits.
    pub fn new(name: &'static str, limits: &Limits) -> Self {
        println!("{}", limits.device);
        println!("{}", limits_line(limits));
        Self { name, limits: limits.clone(), rows: Vec::new(), host_times: Vec::new() }
    }

    /// Prints one row and keeps it.
    pub fn add(&mut self, row: Row) {
        let Row { name, value, unit, rate, share, .. } = &row;
        println!("{name:<60} {value:>10.2} {unit:<12} {rate:<34} {}", share_text(*share));
        self.rows.push(row);
    }

    /// Prints the host's part in a step and keeps it.
    pub fn add_host_time(&mut self, host_time: HostTime) {
        println!("{}", host_time.line());
        self.host_times.push(host_time);
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
        let host_times: Vec<_> = self.host_times.iter().map(HostTime::to_json).collect();
        let mut file = json!({
            "device": self.limits.device,
            "date": date,
            "commit": commit,
            "arguments": command,
            "limits": { "bytes_per_s": self.limits.bytes_per_s, "flops_per_s": self.limits.flops_per_s },
            "rows": rows,
        });
        if !host_times.is_empty() {
            file["host_time"] = json!({ "explanation": host_time::EXPLANATION, "steps": host_times });
        }
        let device = self.limits.device.split([' ', ':']).next().unwrap_or("device");
        let path = dir.join(format!("{}-{device}", self.name));
        std::fs::write(path.with_extension("json"), format!("{file:#}\n"))?;

        let mut text = format!("# {}: {}\n\n", self.name, self.limits.device);
        let _ = writeln!(text, "{}. {date}, commit {commit}, `{command}`.\n", limits_line(&self.limits));
        text.push_str("| what | median | | rate | share of the limit |\n|---|---:|---|---|---|\n");
        for row in &self.rows {
            let Row { name, value, unit, rate, share, .. } = row;
            let _ = writeln!(text, "| {name} | {value:.2} | {unit} | {rate} | {} |", share_text(*share));
        }
        text.push_str(&HostTime::markdown(&self.host_times));
        std::fs::write(path.with_extension("md"), text)?;
        let title = format!("{}: {}, {date}, commit {commit}", self.name, self.limits.device);
        let points: Vec<_> = self.rows.iter().filter_map(Row::point).collect();
        std::fs::write(path.with_extension("svg"), roofline::svg(&title, &self.limits, &points))?;
        println!("written: {}", path.with_extension("{json,md,svg}").display());
        Ok(())
    }
}

impl Row {
    fn to_json(&self) -> serde_json::Value {
        let Self { series, name, value, unit, rate, share, work } = self;
        let (share, limit) = share.unzip();
        let (bytes, flops) = work.map(|work| (work.bytes, work.flops)).unzip();
        json!({
            "series": series, "name": name, "value": value, "unit": unit, "rate": rate, "share": share,
            "limit": limit, "bytes": bytes, "flops": flops,
        })
    }

    fn point(&self) -> Option<Point> {
        let Work { bytes, flops, seconds } = self.work?;
        let (series, name) = (self.series.clone(), self.name.clone());
        Some(Point { series, name, intensity: flops / bytes, flops_per_s: flops / seconds })
    }
}

fn share_text(share: Option<(f64, &str)>) -> String {
    share.map_or_else(String::new, |(share, limit)| format!("{:>5.1} % of {limit}", share * 100.0))
}

/// Reads a number of prompts and their length, as in `2x4096`.
///
/// # Errors
/// Says what was expected.
pub fn parse_prompts(text: &str) -> Result<(usize, usize), String> {
    let (count, len) = text.split_once('x').ok_or("expected COUNTxLENGTH, as in 1x512")?;
    let parse = |part: &str| part.parse().map_err(|error| format!("'{part}': {error}"));
    Ok((parse(count)?, parse(len)?))
}

fn limits_line(limits: &Limits) -> String {
    let (bytes, flops) = (limits.bytes_per_s / 1e9, limits.flops_per_s / 1e9);
    let Limits { bytes_name, flops_name, .. } = limits;
    format!("measured limits: {bytes_name} {bytes:.1} GB/s, {flops_name} {flops:.0} GFLOP/s")
}

/// The repository's, or where there is none what `MINISGL_COMMIT` says.
fn commit() -> String {
    if let Ok(commit) = std::env::var("MINISGL_COMMIT") {
        return commit;
    }
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
