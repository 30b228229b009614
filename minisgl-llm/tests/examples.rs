//! The programs in `examples/` run as they are, on the bundled model.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Cargo builds examples beside the tests: `target/PROFILE/deps/this-test`, `target/PROFILE/examples/NAME`.
fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    let profile = test.parent().and_then(Path::parent).expect("target/PROFILE/deps");
    let path = profile.join("examples").join(name);
    assert!(path.is_file(), "{} is missing: `cargo test -p minisgl-llm` builds it", path.display());
    path
}

/// Runs an example from the root of the repository and returns what it printed.
fn run(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let output = Command::new(example(name)).current_dir(root).output().expect("the example starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} failed: {stderr}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn basic() {
    let text = run("basic");
    assert_eq!(text.matches("Prompt: ").count(), 2, "{text}");
    assert_eq!(text.matches("Generated ").count(), 2, "{text}");
}

#[test]
fn batch() {
    let text = run("batch");
    for prompt in ["A reference is", "A closure is", "An iterator is"] {
        assert!(text.contains(prompt), "{text}");
    }
    assert!(text.contains("(32 tokens, Length)"), "{text}");
}

#[test]
fn pretokenized() {
    assert!(!run("pretokenized").trim().is_empty());
}
