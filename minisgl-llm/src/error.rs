use std::fmt;
use std::path::PathBuf;

use minisgl_engine::EngineError;

/// What this crate can fail with. Every message is one sentence that names the value at fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Prompts or params that cannot be run. Nothing was run.
    #[error(transparent)]
    Invalid(InvalidPrompts),
    /// Requests that failed while they ran.
    #[error("{problem}")]
    Failed {
        /// Index of the prompt that failed first.
        index: usize,
        /// The index and the reason, for people.
        problem: Problem,
        /// The reason.
        #[source]
        source: EngineError,
    },
    /// An argument of a call or a setting that cannot be met.
    #[error("{0}")]
    Argument(String),
    /// The model is neither a directory nor a model id that could be fetched.
    #[error("{0}")]
    Model(String),
    /// A file that cannot be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried, as in `read`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The tokenizer's files cannot be used.
    #[error("{0}")]
    Tokenizer(String),
    /// The chat template cannot be compiled or rendered.
    #[error("{0}")]
    Template(String),
    /// The engine cannot start, or has stopped.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Result of anything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A prompt and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Index of the prompt in the call.
    pub index: usize,
    /// What is wrong, naming the value and what is allowed.
    pub why: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "prompt {}: {}", self.index, self.why)
    }
}

/// Every prompt of a call that cannot be run, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidPrompts {
    /// At least one.
    pub problems: Vec<Problem>,
    /// Prompts in the call.
    pub num_prompts: usize,
}

/// More problems than this are counted, not printed.
const MAX_PRINTED: usize = 10;

impl fmt::Display for InvalidPrompts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.num_prompts > 1 {
            write!(f, "{} of {} prompts cannot be run: ", self.problems.len(), self.num_prompts)?;
        }
        for (i, problem) in self.problems.iter().take(MAX_PRINTED).enumerate() {
            write!(f, "{}{problem}", if i == 0 { "" } else { "; " })?;
        }
        match self.problems.len().saturating_sub(MAX_PRINTED) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

impl std::error::Error for InvalidPrompts {}

impl Error {
    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Error::File { action, path, source }
    }

    /// The reason without the index of the prompt, for errors of a single prompt.
    pub fn reason(&self) -> String {
        match self {
            Error::Invalid(invalid) if invalid.problems.len() == 1 => invalid.problems[0].why.clone(),
            Error::Failed { problem, .. } => problem.why.clone(),
            other => other.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bad_index_up_to_ten() {
        let problems: Vec<_> = (0..12).map(|i| Problem { index: 3 * i, why: format!("bad {i}") }).collect();
        let text = InvalidPrompts { problems, num_prompts: 40 }.to_string();
        assert!(
            text.starts_with("12 of 40 prompts cannot be run: prompt 0: bad 0; prompt 3: bad 1; "),
            "{text}"
        );
        assert!(text.ends_with("prompt 27: bad 9; and 2 more"), "{text}");
    }

    #[test]
    fn one_prompt_needs_no_count() {
        let one = InvalidPrompts {
            problems: vec![Problem { index: 0, why: "the prompt is empty".into() }],
            num_prompts: 1,
        };
        assert_eq!(one.to_string(), "prompt 0: the prompt is empty");
        assert_eq!(Error::Invalid(one).reason(), "the prompt is empty");
    }
}
