use std::path::PathBuf;

/// Why a model could not be fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The server knows no such model.
    #[error("there is no model {id} on {endpoint}")]
    NoModel {
        /// The model.
        id: String,
        /// The server.
        endpoint: String,
    },
    /// The model has no such branch, tag or commit.
    #[error("the model {id} has no revision '{revision}'")]
    NoRevision {
        /// The model.
        id: String,
        /// The revision that was asked for.
        revision: String,
    },
    /// The server wants to know who asks, or knows and refuses.
    #[error("{endpoint} refuses access to {id} (HTTP {status}): {hint}")]
    Denied {
        /// The model.
        id: String,
        /// The server.
        endpoint: String,
        /// 401 or 403.
        status: u16,
        /// What to do.
        hint: String,
    },
    /// Offline by request, and the files are not in the cache.
    #[error(
        "{id} at revision '{revision}' is not complete in the cache {}, and HF_HUB_OFFLINE forbids to fetch it",
        cache_dir.display()
    )]
    Offline {
        /// The model.
        id: String,
        /// The revision.
        revision: String,
        /// Where it was looked for.
        cache_dir: PathBuf,
    },
    /// No connection.
    #[error("cannot reach {url}: {why}")]
    Unreachable {
        /// What was asked for.
        url: String,
        /// What went wrong.
        why: String,
    },
    /// An answer that is no answer.
    #[error("{url}: {why}")]
    Answer {
        /// What was asked for.
        url: String,
        /// What is wrong with the answer.
        why: String,
    },
    /// A file that arrived with another size than announced.
    #[error("{file} has {found} bytes, expected {expected}: it was deleted; try again")]
    Size {
        /// The file.
        file: String,
        /// Bytes announced.
        expected: u64,
        /// Bytes that arrived.
        found: u64,
    },
    /// The model has no weights in a format that can be read.
    #[error("{0}")]
    Weights(String),
    /// No room for a file.
    #[error("no space left for {}, which needs {needed_bytes} bytes more", path.display())]
    DiskFull {
        /// The file.
        path: PathBuf,
        /// Bytes that were still to come.
        needed_bytes: u64,
    },
    /// The cache cannot be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

impl HubError {
    pub(super) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| HubError::File { action, path, source }
    }
}
