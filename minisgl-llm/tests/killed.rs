//! `minisgl generate --input` is killed again and again, and `--resume` goes on: every line once, none torn, none
//! changed.
#![cfg(feature = "cli")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/rust-docs-6m");
const NUM_LINES: usize = 200;
const NUM_KILLS: usize = 10;

/// SplitMix64.
struct Rng(u64);

impl Rng {
    /// Seeded from `SEED` or the clock; says with what.
    fn from_env() -> Self {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64);
        let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(now);
        println!("SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) % limit as u64) as usize
    }
}

/// A run of the command that is killed if the test ends before it does.
struct Run(Child);

impl Run {
    fn start(input: &Path, output: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_minisgl"));
        command.args(["generate", "--resume", "--model", MODEL, "--device", "cpu"]);
        // Few at a time, so that lines come all along and not in one burst at the end.
        command.args(["--max-running-req", "8", "--num-page-override", "256", "--threads", "1"]);
        command.arg("--input").arg(input).arg("--output").arg(output);
        command.stdin(Stdio::null()).stdout(Stdio::null()).env("HF_HUB_OFFLINE", "1");
        Self(command.spawn().expect("the command starts"))
    }

    fn finish(mut self, code: i32) {
        assert_eq!(self.0.wait().expect("the run ends").code(), Some(code));
    }

    fn has_ended(&mut self) -> bool {
        self.0.try_wait().expect("the state of the run").is_some()
    }

    /// SIGKILL, which nothing can catch, or SIGTERM, which asks.
    fn end_by(mut self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.0.id().to_string()]).status().expect("kill");
        assert!(status.success());
        assert!(!self.0.wait().expect("the run ends").success(), "it was over before it could be killed");
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // It has ended already unless an assertion failed.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Sampled requests of different lengths, a few of them broken.
fn write_input(path: &Path) {
    let line = |i: usize| match i % 50 {
        49 => format!("{{\"token_ids\": [{}], \"top_p\": 7}}\n", i + 1),
        _ => format!(
            "{{\"token_ids\": [4091, {}, 9], \"max_tokens\": {}, \"temperature\": 1, \"ignore_eos\": true, \
             \"id\": \"é{i}\"}}\n",
            1 + i,
            1 + i * 37 % 29
        ),
    };
    std::fs::write(path, (0..NUM_LINES).map(line).collect::<String>()).expect("the input");
}

/// The whole lines of a file that may not be there yet.
fn whole_lines(path: &Path) -> Vec<u8> {
    let mut bytes = std::fs::read(path).unwrap_or_default();
    let end = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    bytes.truncate(end);
    bytes
}

/// The lines without what may depend on where a run was resumed: how much of a prompt was in the prefix cache.
fn without_cache(bytes: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(bytes).expect("UTF-8");
    let parse = |line: &str| {
        let mut line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        line.as_object_mut().expect("an object").remove("num_cached_tokens");
        line
    };
    text.lines().map(parse).collect()
}

/// Waits until the file has grown by `num_bytes`, then some more.
fn wait_for_output(run: &mut Run, path: &Path, num_bytes: usize, then: Duration) {
    let size = || std::fs::metadata(path).map_or(0, |metadata| metadata.len() as usize);
    let (first, start) = (size(), Instant::now());
    while size() < first + num_bytes && !run.has_ended() {
        assert!(start.elapsed() < Duration::from_secs(120), "no output for two minutes");
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(then);
}

#[test]
fn ten_kills_and_resumes_give_every_line_once() {
    let mut rng = Rng::from_env();
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| -> PathBuf { dir.path().join(name) };
    let (input, undisturbed, output) = (path("in"), path("undisturbed"), path("out"));
    write_input(&input);
    // Failed lines are lines, and make the exit code 1.
    Run::start(&input, &undisturbed).finish(1);
    let expected_bytes = std::fs::read(&undisturbed).expect("the output");
    let expected = without_cache(&expected_bytes);
    assert_eq!(expected.len(), NUM_LINES);

    let mut kept = Vec::new();
    for kill in 0..NUM_KILLS {
        let mut run = Run::start(&input, &output);
        match kill {
            // While the model is loaded, or barely after.
            0 | 5 => std::thread::sleep(Duration::from_millis(rng.below(60) as u64)),
            _ => {
                let num_bytes = 1 + rng.below(expected_bytes.len() / (2 * NUM_KILLS));
                wait_for_output(&mut run, &output, num_bytes, Duration::from_micros(rng.below(5000) as u64));
            }
        }
        run.end_by(if kill == 3 { "-TERM" } else { "-KILL" });
        let now = whole_lines(&output);
        assert!(now.starts_with(&kept), "kill {kill}: lines that were kept have changed");
        kept = now;
        let num_lines = without_cache(&kept).len();
        println!("kill {kill}: {num_lines} lines");
        assert!(num_lines < NUM_LINES, "kill {kill}: nothing was left to resume");
        if kill % 2 == 0 {
            // As if it had come in the middle of a write: any number of bytes of the line that is next, of which a
            // character may be cut too.
            let next = expected_bytes.split_inclusive(|&byte| byte == b'\n').nth(num_lines).expect("a line");
            let torn = &next[..1 + rng.below(next.len() - 1)];
            std::fs::write(&output, [&kept, torn].concat()).expect("a torn line");
        }
    }

    Run::start(&input, &output).finish(1);
    let bytes = std::fs::read(&output).expect("the output");
    assert!(bytes.starts_with(&kept), "lines that were kept have changed");
    assert_eq!(bytes, whole_lines(&output), "the last line is torn");
    let found = without_cache(&bytes);
    let indices: Vec<_> = found.iter().map(|line| line["index"].as_u64()).collect();
    assert_eq!(indices, (0..NUM_LINES as u64).map(Some).collect::<Vec<_>>(), "every line once, in order");
    assert!(found == expected, "lines differ from those of a run that was not disturbed");

    // Nothing is left to do, and nothing is touched.
    Run::start(&input, &output).finish(0);
    assert_eq!(std::fs::read(&output).expect("the output"), bytes);
}
