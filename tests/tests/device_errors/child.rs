//! Tests that lose a device, or look for one in another environment, run in a process of their own.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const MARK: &str = "MINISGL_TEST_CHILD";
/// Whoever takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether this process was started by [`Child`].
pub(crate) fn is_child() -> bool {
    std::env::var_os(MARK).is_some()
}

/// One ignored test of this program, in a process of its own.
pub(crate) struct Child {
    name: &'static str,
    command: Command,
    /// Deleted in the end.
    dir: Option<PathBuf>,
}

impl Child {
    pub(crate) fn new(name: &'static str) -> Self {
        let program = std::env::current_exe().expect("the path of this program");
        let mut command = Command::new(program);
        command.args(["--exact", name, "--ignored", "--nocapture"]).env(MARK, "1");
        Self { name, command, dir: None }
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Hides the driver: the names under which it is looked for lead to files that are no library.
    pub(crate) fn without_driver(mut self) -> Self {
        let dir = std::env::temp_dir().join(format!("minisgl-no-driver-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a temporary directory");
        for name in ["libcuda.so", "libcuda.so.1"] {
            fs::write(dir.join(name), "not a library").expect("a file in the temporary directory");
        }
        self.command.env("LD_LIBRARY_PATH", &dir);
        self.dir = Some(dir);
        self
    }

    /// Waits for the end, which must come soon and be good.
    pub(crate) fn succeeds(mut self) {
        let pipes = self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = pipes.spawn().expect("a process");
        let start = Instant::now();
        let status = loop {
            match child.try_wait().expect("the state of a child") {
                Some(status) => break Some(status),
                None if start.elapsed() > PATIENCE => break None,
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        if status.is_none() {
            drop(child.kill());
        }
        // The little that a child says fits its pipes.
        let (mut out, mut err) = (String::new(), String::new());
        drop(child.stdout.take().map(|mut pipe| pipe.read_to_string(&mut out)));
        drop(child.stderr.take().map(|mut pipe| pipe.read_to_string(&mut err)));
        println!("{out}");
        if let Some(dir) = self.dir.take() {
            drop(fs::remove_dir_all(dir));
        }
        match status {
            None => panic!("{} hangs:\n{out}\n{err}", self.name),
            Some(status) if !status.success() => panic!("{} failed: {status}\n{out}\n{err}", self.name),
            Some(_) => assert!(out.contains("1 passed"), "{} did not run:\n{out}", self.name),
        }
    }
}
