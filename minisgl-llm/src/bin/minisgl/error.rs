use std::io;
use std::path::{Path, PathBuf};

/// Why the command failed: one sentence for standard error.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The command line asks for what cannot be. Exit code 2.
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Run(String),
    #[error("{0}")]
    Llm(#[from] minisgl_llm::Error),
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
    #[error("cannot {action} {}: {source}", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
}

impl CliError {
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| CliError::File { action, path, source }
    }

    pub(crate) fn is_broken_pipe(&self) -> bool {
        matches!(self, CliError::Output(e) | CliError::File { source: e, .. } if e.kind() == io::ErrorKind::BrokenPipe)
    }
}

pub(crate) type Result<T, E = CliError> = std::result::Result<T, E>;
