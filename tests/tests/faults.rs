//! Faults of other engines that the model's files and the ops must not have, and the index of all of them:
//! `docs/faults.md` names a test for each, and the line that brings the fault back (`ci/break-faults` does).

use std::path::Path;

use minisgl_engine::config::{Device, EngineConfig};
use minisgl_engine::model::{ModelSpec, RopeScaling};
use minisgl_engine::request::Request;
use minisgl_engine::{DType, Engine};
use minisgl_kernels::cpu::{Cpu, CpuOptions};
use minisgl_kernels::{Backend, Tensor};
use minisgl_tests::harness::{greedy, run, seed};
use minisgl_tests::models::{ModelKind, TestModel, noise, random_tokens};

fn spec(kind: ModelKind) -> ModelSpec {
    let model = TestModel::random(kind, DType::F32, 1, 1, &[]);
    ModelSpec::read(model.dir()).expect("a good directory")
}

/// Old files say `type` where new ones say `rope_type`: the small Qwen2 model's do.
///
/// Break: `rope.text("type")` in `RopeSpec::read`.
#[test]
fn fault_15_legacy_rope_type_key() {
    let rope = spec(ModelKind::Qwen2).rope;
    assert!(matches!(rope.scaling, RopeScaling::Yarn { factor: 4.0, .. }), "{rope:?}");
}

/// YaRN's temperature on attention is a factor on cosines and sines, `0.1 ln(factor) + 1` where the file gives none.
///
/// Break: `_ => mscale(1.0)` in `yarn_attention_factor` (to `1.0`).
#[test]
fn fault_15_yarn_attention_factor() {
    let rope = spec(ModelKind::Qwen2).rope;
    let expected = 0.1 * 4f64.ln() + 1.0;
    assert_eq!(rope.attention_factor(), expected);
    let first_row = &rope.table(16, 1)[..16];
    assert_eq!(first_row[..8], [expected as f32; 8], "cosines at position 0");
}

/// Two prompts that differ only further back than three layers with a window of 7 can see give the same bits. Without
/// a window they do not.
///
/// Break: `WindowRule::All => 0` in `read_windows` (to `num_layers`).
#[test]
fn fault_15_sliding_window_is_kept() {
    let seed = seed();
    for (kind, is_windowed) in [(ModelKind::Mistral, true), (ModelKind::Llama, false)] {
        let model = TestModel::random(kind, DType::F32, 1, seed, &[]);
        let config = EngineConfig {
            dtype: Some(DType::F32),
            device: Device::Cpu,
            num_page_override: Some(64),
            threads: Some(2),
            ..EngineConfig::new(model.dir())
        };
        let engine = Engine::start(config, None).expect("a good model");
        let end = random_tokens(seed, 0, 40, 128);
        let request = |stream: u32| {
            let prompt = [&random_tokens(seed, stream, 30, 128)[..], &end].concat();
            let Request { token_ids, mut params } = greedy(&prompt, 8);
            params.logprobs = Some(5);
            Request { token_ids, params }
        };
        let outputs = run(&engine, &[request(1), request(2)]);
        let is_equal = outputs[0].logprobs == outputs[1].logprobs;
        assert_eq!(is_equal, is_windowed, "{kind:?}: {outputs:?}");
    }
}

fn filled<B: Backend>(backend: &mut B, dtype: DType, rows: usize, cols: usize, seed: u64) -> Tensor<B::Buf> {
    let mut tensor = backend.tensor("test tensor", dtype, rows, cols).expect("memory");
    let bytes = dtype.narrow(&noise(seed, rows as u32, rows * cols));
    backend.write(&mut tensor.buf, 0, &bytes).expect("a write");
    tensor
}

fn bytes<B: Backend>(backend: &mut B, tensor: &Tensor<B::Buf>) -> Vec<u8> {
    let mut bytes = vec![0; tensor.size_bytes()];
    backend.read(&tensor.buf, 0, &mut bytes).expect("a read");
    bytes
}

/// The normalised rows go to the output alone: the input, and the sum that becomes the residual, stay what they are,
/// also in f32, where widening for the norm is no copy.
///
/// Break: write `out` over `residual` at the end of a row in `add_rms_norm` of the CPU backend.
#[test]
fn fault_16_rms_norm_leaves_its_input() {
    let seed = seed();
    let cpu = &mut Cpu::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }).expect("a CPU");
    for dtype in DType::ALL {
        let (rows, cols) = (5, 67);
        let x = filled(cpu, dtype, rows, cols, seed);
        let weight = filled(cpu, dtype, 1, cols, seed);
        let mut residual = filled(cpu, dtype, rows, cols, seed + 1);
        let mut out = filled(cpu, dtype, rows, cols, seed + 2);
        let x_before = bytes(cpu, &x);
        let sum: Vec<f32> = dtype
            .widen(&x_before)
            .iter()
            .zip(dtype.widen(&bytes(cpu, &residual)))
            .map(|(x, residual)| x + residual)
            .collect();

        cpu.rms_norm(&mut out, &x, &weight, 1e-5, rows).expect("rms_norm");
        assert_eq!(bytes(cpu, &x), x_before, "{dtype}: the input of rms_norm");
        cpu.add_rms_norm(&mut out, &mut residual, &x, &weight, 1e-5, rows).expect("add_rms_norm");
        assert_eq!(bytes(cpu, &x), x_before, "{dtype}: the input of add_rms_norm");
        assert_eq!(bytes(cpu, &residual), dtype.narrow(&sum), "{dtype}: the residual is the sum");
    }
}

/// A row of the index: what is in backticks in its last two columns.
struct Row {
    fault: usize,
    test: String,
    test_file: String,
    broken_file: String,
    line: String,
    broken_line: String,
}

fn index() -> Vec<Row> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/faults.md");
    let text = std::fs::read_to_string(path).expect("docs/faults.md");
    let rows = text.lines().filter(|line| line.starts_with("| ") && line.contains('`'));
    let parse = |row: &str| {
        let number = row.trim_start_matches("| ").split(' ').next().and_then(|number| number.parse().ok());
        let mut quoted = row.split('`').skip(1).step_by(2).map(str::to_owned);
        let mut next = |what: &str| quoted.next().unwrap_or_else(|| panic!("{what} is missing: {row}"));
        Row {
            fault: number.unwrap_or_else(|| panic!("the fault's number is missing: {row}")),
            test: next("the test"),
            test_file: next("the test's file"),
            broken_file: next("the file to break"),
            line: next("the line to break"),
            broken_line: next("the broken line"),
        }
    };
    rows.map(parse).collect()
}

/// Every fault has a test, every test named is one, and what is to be broken is there to be broken.
#[test]
fn every_fault_has_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read = |file: &str| {
        std::fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
    };
    let rows = index();
    for fault in 1..=16 {
        assert!(rows.iter().any(|row| row.fault == fault), "fault {fault} has no row");
    }
    for Row { fault, test, test_file, broken_file, line, broken_line } in &rows {
        let head = format!("#[test]\nfn {test}()");
        let text = read(test_file);
        let is_there = text.contains(&head) || text.contains(&head.replace('\n', "\n    "));
        assert!(is_there, "fault {fault}: {test_file} has no test {test}");
        assert!(test.starts_with(&format!("fault_{fault:02}_")), "fault {fault}: the name of {test}");
        assert!(read(broken_file).contains(line), "fault {fault}: {broken_file} has no `{line}`");
        assert_ne!(line, broken_line, "fault {fault}");
    }
}

/// No test is named after a fault without standing in the index.
#[test]
fn every_test_of_a_fault_is_in_the_index() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let rows = index();
    let mut folders: Vec<_> = ["minisgl-kernels", "minisgl-engine", "minisgl-llm", "tests/tests"]
        .map(|folder| root.join(folder))
        .into();
    while let Some(folder) = folders.pop() {
        for entry in
            std::fs::read_dir(&folder).expect("a folder").map(|entry| entry.expect("an entry").path())
        {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&entry).expect("UTF-8");
                let names = text.split("fn fault_").skip(1).filter_map(|rest| rest.split('(').next());
                for name in names.filter(|name| name.starts_with(|c: char| c.is_ascii_digit())) {
                    let is_listed = rows.iter().any(|row| row.test == format!("fault_{name}"));
                    assert!(is_listed, "fault_{name} of {} is not in docs/faults.md", entry.display());
                }
            }
        }
    }
}
