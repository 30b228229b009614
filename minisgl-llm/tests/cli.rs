//! The `minisgl` command as a user runs it.
#![cfg(feature = "cli")]

use std::io::{Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

/// From the package's directory, where Cargo starts a test.
const MODEL: &str = "../models/rust-docs-6m";
/// Few pages: starting takes no time, and many processes fit side by side.
const SMALL: [&str; 6] = ["--model", MODEL, "--device", "cpu", "--num-page-override", "256"];

fn command(args: &[&str]) -> Command {
    // At run time, so that test and command may be moved together.
    let minisgl = std::env::var_os("CARGO_BIN_EXE_minisgl").unwrap_or(env!("CARGO_BIN_EXE_minisgl").into());
    let mut command = Command::new(minisgl);
    command.args(args).stdin(Stdio::null()).env("HF_HUB_OFFLINE", "1").env_remove("RUST_LOG");
    command
}

/// Runs a subcommand on the bundled model.
fn minisgl(subcommand: &str, args: &[&str]) -> Output {
    let mut all = vec![subcommand];
    all.extend(SMALL);
    all.extend(args);
    command(&all).output().unwrap()
}

fn start(subcommand: &str, args: &[&str]) -> Child {
    let mut command = command(&[subcommand]);
    command.args(SMALL).args(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn with_input(subcommand: &str, args: &[&str], input: &str) -> Output {
    let mut child = start(subcommand, args);
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn lines(output: &[u8]) -> Vec<Value> {
    text(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[track_caller]
fn ok(output: &Output) {
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "");
}

#[track_caller]
fn fails(output: &Output, code: i32, expected: &str) {
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{error}");
    assert!(error.contains(expected), "expected {expected}: {error}");
    assert!(!error.contains("panicked"), "{error}");
    if code == 1 {
        assert_eq!(error.trim_end().lines().count(), 1, "one sentence: {error}");
    }
}

#[test]
fn a_prompt_prints_its_text_alone() {
    let output = minisgl("generate", &["--prompt", "Ownership is", "--max-tokens", "8", "--dtype", "f32"]);
    ok(&output);
    assert_eq!(text(&output.stdout), " Box Projectilony knowous\n");
}

/// `RUST_LOG` shows each part of each step with the time that it took.
#[test]
fn spans_of_a_step_are_logged() {
    let mut command = command(&["generate", "--prompt", "Ownership is", "--max-tokens", "2"]);
    let output = command.args(SMALL).env("RUST_LOG", "minisgl_engine=trace").output().unwrap();
    assert!(output.status.success());
    let log = text(&output.stderr);
    for part in ["schedule", "launch{seqs=1 tokens=", "wait", "commit"] {
        let is_span = |line: &str| line.contains(part) && line.contains("close time.busy=");
        assert_eq!(log.lines().filter(|line| is_span(line)).count(), 2, "{part} of two steps: {log}");
    }
}

#[test]
fn lines_in_lines_out_in_order_and_a_bad_line_stops_no_other() {
    let input = concat!(
        r#"{"prompt": "Ownership is", "max_tokens": 40, "id": "long"}"#,
        "\n",
        "\n",
        r#"{"token_ids": [4091, 46], "max_tokens": 1, "id": 2}"#,
        "\n",
        r#"{"prompt": "x", "top_p": 7}"#,
        "\n",
        "{nonsense\n",
        r#"{"token_ids": [99999]}"#,
        "\n",
        r#"{"messages": [{"role": "user", "content": "What does Vec::push do?"}], "n": 2, "logprobs": 1}"#,
    );
    let output = with_input("generate", &["--input", "-", "--max-tokens", "3"], input);
    fails(&output, 1, "3 of 6 requests failed; their output lines say why");
    let lines = lines(&output.stdout);
    let indices: Vec<_> = lines.iter().map(|line| line["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, [0, 1, 2, 3, 4, 5]);
    assert_eq!((&lines[0]["id"], lines[0]["token_ids"].as_array().unwrap().len()), (&"long".into(), 40));
    assert_eq!((&lines[1]["id"], &lines[1]["finish_reason"]), (&2.into(), &"length".into()));
    assert_eq!(lines[2]["error"], "top_p is 7, expected a number above 0, at most 1");
    assert!(lines[3]["error"].as_str().unwrap().starts_with("the line is not a request: "));
    assert!(lines[4]["error"].as_str().unwrap().contains("99999"));
    assert_eq!(lines[5]["alternatives"].as_array().unwrap().len(), 1);
    assert_eq!(lines[5]["logprobs"].as_array().unwrap().len(), 3);
}

/// `num` requests of very different lengths.
fn workload(num: usize) -> String {
    let line = |i: usize| {
        let len = 1 + i * 37 % 61;
        format!(
            "{{\"token_ids\": [{}, 7, 9], \"max_tokens\": {len}, \"temperature\": 1, \"ignore_eos\": true}}\n",
            1 + i
        )
    };
    (0..num).map(line).collect()
}

#[test]
fn an_output_is_not_replaced_by_accident() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in"), dir.path().join("out"));
    std::fs::write(&input, workload(1)).unwrap();
    std::fs::write(&output, "precious\n").unwrap();
    let (input, output) = (input.to_str().unwrap(), output.to_str().unwrap());
    fails(
        &minisgl("generate", &["--input", input, "--output", output]),
        2,
        "exists: --resume goes on with it",
    );
    fails(
        &minisgl("generate", &["--input", input, "--output", output, "--resume"]),
        1,
        "cannot resume: line 1 of",
    );
    assert_eq!(std::fs::read_to_string(output).unwrap(), "precious\n");
    ok(&minisgl("generate", &["--input", input, "--output", output, "--overwrite"]));
    assert_eq!(lines(&std::fs::read(output).unwrap()).len(), 1);
}

#[test]
fn a_reader_that_leaves_ends_the_run_quietly() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in");
    std::fs::write(&input, workload(400)).unwrap();
    let mut child = start("generate", &["--input", input.to_str().unwrap()]);
    let mut first = [0; 10];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    ok(&output);
}

#[test]
fn bad_command_lines() {
    let cases: &[(&[&str], i32, &str)] = &[
        (&[], 2, "Usage: minisgl"),
        (&["frobnicate"], 2, "unrecognized subcommand 'frobnicate'"),
        (&["generate", "--prompt", "x"], 2, "--model"),
        (&["generate", "--model", MODEL], 2, "--prompt"),
        (&["generate", "--model", MODEL, "--prompt", "x", "--input", "y"], 2, "cannot be used with"),
        (&["generate", "--model", MODEL, "--prompt", "x", "--page-size", "0"], 2, "expected at least 1"),
        (&["generate", "--model", MODEL, "--prompt", "x", "--max-runing-req", "3"], 2, "--max-runing-req"),
        (&["generate", "--model", MODEL, "--prompt", "x", "--dtype", "int3"], 2, "unknown dtype 'int3'"),
        (&["generate", "--model", MODEL, "--prompt", "x", "--device", "tpu"], 2, "unknown device 'tpu'"),
        (
            &["generate", "--model", MODEL, "--prompt", "x", "--cache-type", "lru"],
            2,
            "unknown cache_type 'lru'",
        ),
        (&["generate", "--model", MODEL, "--prompt", "x", "--attention-backend", "fa4"], 2, "'fa4'"),
        (&["generate", "--model", MODEL, "--prompt", "x", "--top-p", "7"], 2, "top_p is 7"),
        (&["generate", "--model", MODEL, "--prompt", "x", "--temperature", "-1"], 2, "temperature is -1"),
        (&["generate", "--model", MODEL, "--prompt", "x", "--max-tokens", "0"], 2, "max_tokens is 0"),
        (&["generate", "--model", MODEL, "--prompt", "x", "--resume"], 2, "--output"),
        (&["chat", "--model", MODEL, "-n", "2"], 2, "n is 2, a chat has one answer"),
        (&["bench", "--model", MODEL, "--num-requests", "0"], 2, "expected at least 1"),
        (
            &["generate", "--model", "/no/such/dir", "--prompt", "x"],
            1,
            "'/no/such/dir' is neither a directory",
        ),
        (&["generate", "--model", "no/such-model", "--prompt", "x"], 1, "HF_HUB_OFFLINE forbids to fetch it"),
        (
            &["generate", "--model", MODEL, "--input", "/no/such/file"],
            1,
            "cannot open /no/such/file: No such file",
        ),
        (&["generate", "--model", MODEL, "--input", "/"], 1, "/ is a directory"),
        (&["generate", "--model", MODEL, "--prompt", "x", "--page-size", "3"], 1, "page_size is 3"),
        (&["generate", "--model", MODEL, "--prompt", "x", "--memory-ratio", "2"], 1, "memory_ratio is 2"),
        (
            &["generate", "--model", MODEL, "--prompt", "x", "--device", "cpu", "--attention-backend", "fa"],
            1,
            "fa",
        ),
        (
            &["generate", "--model", MODEL, "--device", "cpu", "--prompt", "x", "--prompt", ""],
            1,
            "prompt 1: the prompt is empty",
        ),
        (&["bench", "--model", MODEL, "--workload", "/no/such/file"], 1, "cannot read /no/such/file"),
        (&["info", "--model", "/no/such/dir"], 1, "neither a directory"),
    ];
    for (args, code, expected) in cases {
        fails(&command(args).output().unwrap(), *code, expected);
    }
}

#[test]
fn help_and_version() {
    let version = command(&["--version"]).output().unwrap();
    assert_eq!(text(&version.stdout), concat!("minisgl ", env!("CARGO_PKG_VERSION"), "\n"));
    for (args, expected) in [
        (["--help", ""], "Exit codes:"),
        (["generate", "--help"], "Output lines:"),
        (["chat", "--help"], "/reset"),
        (["bench", "--help"], "Workload file:"),
        (["info", "--help"], "--page-size"),
    ] {
        let args: Vec<_> = args.into_iter().filter(|arg| !arg.is_empty()).collect();
        let output = command(&args).output().unwrap();
        ok(&output);
        assert!(text(&output.stdout).contains(expected), "{}", text(&output.stdout));
    }
}

#[test]
fn a_piped_chat_keeps_the_conversation() {
    let input = "What does Vec::push do?\n\n/unknown\n/reset\nWhat does Vec::push do?\n/exit\nnever\n";
    let output = with_input("chat", &["--max-tokens", "48", "--dtype", "f32"], input);
    assert!(output.status.success());
    assert!(
        text(&output.stderr).starts_with("unknown command /unknown; /reset forgets"),
        "{}",
        text(&output.stderr)
    );
    let answers = text(&output.stdout);
    let first = &answers[..answers.len() / 2];
    assert!(answers.starts_with("Appends an element to the back of a collection.\n"), "{answers}");
    assert_eq!(answers, first.repeat(2), "after /reset the same question has the same answer");
}

#[test]
fn a_chat_answer_that_cannot_be_given_is_forgotten() {
    let long = "word ".repeat(200);
    let input = format!("{long}\nWhat does Vec::push do?\n");
    let args = ["--max-tokens", "8", "--max-seq-len-override", "64", "--dtype", "f32"];
    let output = with_input("chat", &args, &input);
    assert!(output.status.success());
    assert!(text(&output.stderr).contains("64"), "{}", text(&output.stderr));
    assert!(text(&output.stdout).starts_with("Appends an element"), "{}", text(&output.stdout));
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_one_answer_then_leaves() {
    let args = ["--max-tokens", "4000", "--ignore-eos"];
    let mut child = start("chat", &args);
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdin.write_all(b"Tell me everything.\n").unwrap();
    let mut answer = vec![0; 20];
    stdout.read_exact(&mut answer).unwrap();
    let interrupt = || {
        let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        assert!(status.success());
    };
    interrupt();
    // Bytes until the mark: the stopped answer ends, the session does not.
    while !answer.ends_with(b" [stopped]\n") {
        let mut byte = [0];
        stdout.read_exact(&mut byte).expect("the answer was not stopped");
        answer.push(byte[0]);
    }
    stdin.write_all(b"/reset\nWhat does Vec::push do?\n").unwrap();
    let mut next = [0; 10];
    stdout.read_exact(&mut next).unwrap();
    interrupt();
    while !answer.ends_with(b" [stopped]\n") || answer.len() < 40 {
        let mut byte = [0];
        if stdout.read(&mut byte).unwrap() == 0 {
            break;
        }
        answer.push(byte[0]);
    }
    // Now nothing runs.
    std::thread::sleep(Duration::from_millis(200));
    let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(status.success());
    drop(stdout);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn bench_prints_and_writes_its_figures() {
    let dir = tempfile::tempdir().unwrap();
    let (workload, json) = (dir.path().join("w.json"), dir.path().join("out.json"));
    std::fs::write(&workload, r#"{"prompt_len": [20, 30], "max_tokens": [4, 6], "temperature": 0.6}"#)
        .unwrap();
    let (workload, json) = (workload.to_str().unwrap(), json.to_str().unwrap());
    let output =
        minisgl("bench", &["--workload", workload, "--repeats", "2", "--json", json, "--use-dummy-weight"]);
    ok(&output);
    assert!(text(&output.stdout).contains("\nmedian: "), "{}", text(&output.stdout));
    let report: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    assert_eq!((&report["prompt_tokens"], &report["output_tokens"]), (&50.into(), &10.into()));
    assert_eq!(report["runs"].as_array().unwrap().len(), 2);
    assert_eq!(report["dummy_weights"], true);
}

#[test]
fn the_demo_asks_and_completes() {
    let output = minisgl("demo", &["--dtype", "f32"]);
    ok(&output);
    let text = text(&output.stdout);
    assert!(
        text.contains("> What does Vec::push do?\nAppends an element to the back of a collection.\n"),
        "{text}"
    );
    assert_eq!(text.matches(" output tokens, ").count(), 2, "{text}");
}

#[test]
fn info_says_what_it_costs() {
    let output = command(&["info", "--model", MODEL, "--page-size", "32"]).output().unwrap();
    ok(&output);
    let text = text(&output.stdout);
    for expected in [
        "cpu features",
        "LlamaForCausalLM",
        "6 layers, hidden 256, 4 query and 2 KV heads of 64, ffn 768",
        "4096 ids, 5 of them special tokens",
        "eos ids           4092, 4095",
        "11.0 MiB in bf16",
        "3.0 KiB a token, 96.0 KiB a page of 32 tokens",
    ] {
        assert!(text.contains(expected), "expected {expected}: {text}");
    }
}
