//! What `bench` runs: lengths from a file or from flags, and random prompts.

use std::path::Path;

use minisgl_llm::derive_seed;
use serde::Deserialize;

use crate::args::BenchArgs;
use crate::error::{CliError, Result};

/// Requests by their lengths.
#[derive(Debug, PartialEq)]
pub(crate) struct Workload {
    pub(crate) prompt_len: Vec<usize>,
    pub(crate) max_tokens: Vec<usize>,
    pub(crate) temperature: f32,
    pub(crate) ignore_eos: bool,
}

#[derive(Deserialize)]
struct WorkloadFile {
    prompt_len: Vec<usize>,
    max_tokens: Vec<usize>,
    #[serde(default)]
    temperature: f32,
    #[serde(default = "yes")]
    ignore_eos: bool,
}

fn yes() -> bool {
    true
}

const DEFAULT_NUM_REQUESTS: usize = 32;

impl Workload {
    pub(crate) fn from_args(args: &BenchArgs) -> Result<Self> {
        let mut workload = match &args.workload {
            Some(path) => Self::from_file(path)?,
            None => {
                let num = args.num_requests.unwrap_or(DEFAULT_NUM_REQUESTS);
                Self {
                    prompt_len: vec![args.input_len; num],
                    max_tokens: vec![args.output_len; num],
                    temperature: 0.0,
                    ignore_eos: true,
                }
            }
        };
        let num = args.num_requests.unwrap_or(workload.prompt_len.len());
        workload.prompt_len.truncate(num);
        workload.max_tokens.truncate(num);
        workload.temperature = args.temperature.unwrap_or(workload.temperature);
        Ok(workload)
    }

    fn from_file(path: &Path) -> Result<Self> {
        let invalid = |why: String| CliError::Run(format!("{} is not a workload: {why}", path.display()));
        let bytes = std::fs::read(path).map_err(CliError::file("read", path))?;
        let file: WorkloadFile = serde_json::from_slice(&bytes).map_err(|e| invalid(e.to_string()))?;
        let (prompts, outputs) = (file.prompt_len.len(), file.max_tokens.len());
        if prompts != outputs || prompts == 0 {
            return Err(invalid(format!("it has {prompts} prompt_len and {outputs} max_tokens")));
        }
        if file.prompt_len.iter().chain(&file.max_tokens).any(|&len| len == 0) {
            return Err(invalid("a length is 0".into()));
        }
        Ok(Self {
            prompt_len: file.prompt_len,
            max_tokens: file.max_tokens,
            temperature: file.temperature,
            ignore_eos: file.ignore_eos,
        })
    }

    pub(crate) fn num_requests(&self) -> usize {
        self.prompt_len.len()
    }

    /// Random prompts; those of different runs share no prefix.
    pub(crate) fn prompts(&self, vocab: usize, seed: u64, run: u64) -> Vec<Vec<u32>> {
        let run_seed = derive_seed(seed, run);
        let prompt = |(i, &len): (usize, &usize)| {
            let request_seed = derive_seed(run_seed, i as u64);
            (0..len as u64).map(|t| (derive_seed(request_seed, t) % vocab as u64) as u32).collect()
        };
        self.prompt_len.iter().enumerate().map(prompt).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Workload> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.json");
        std::fs::write(&path, text).unwrap();
        Workload::from_file(&path)
    }

    #[test]
    fn files() {
        let workload =
            read(r#"{"prompt_len": [3, 4], "max_tokens": [1, 2], "temperature": 0.5, "source": "x"}"#)
                .unwrap();
        assert_eq!((workload.num_requests(), workload.temperature, workload.ignore_eos), (2, 0.5, true));
        for (text, expected) in [
            ("{}", "missing field `prompt_len`"),
            (r#"{"prompt_len": [1], "max_tokens": []}"#, "it has 1 prompt_len and 0 max_tokens"),
            (r#"{"prompt_len": [0], "max_tokens": [1]}"#, "a length is 0"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains("is not a workload: ") && error.contains(expected), "{error}");
        }
    }

    #[test]
    fn prompts_differ_between_runs_and_requests() {
        let workload =
            Workload { prompt_len: vec![8, 8], max_tokens: vec![1, 1], temperature: 0.0, ignore_eos: true };
        let (a, b) = (workload.prompts(1000, 0, 0), workload.prompts(1000, 0, 1));
        assert_eq!(a, workload.prompts(1000, 0, 0));
        assert!(a[0] != a[1] && a[0] != b[0] && a[0].iter().all(|&t| t < 1000));
    }
}
