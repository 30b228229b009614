use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::HubError;

/// One model's part of the cache.
pub(super) struct RepoCache {
    dir: PathBuf,
    locks_dir: PathBuf,
}

/// Whether a revision names a commit: what it stands for never changes.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

impl RepoCache {
    pub(super) fn new(cache_dir: &Path, id: &str) -> Self {
        let name = format!("models--{}", id.replace('/', "--"));
        Self { dir: cache_dir.join(&name), locks_dir: cache_dir.join(".locks").join(&name) }
    }

    pub(super) fn snapshot_dir(&self, commit: &str) -> PathBuf {
        self.dir.join("snapshots").join(commit)
    }

    /// The snapshot of a revision, as far as it was fetched.
    pub(super) fn snapshot(&self, revision: &str) -> Option<PathBuf> {
        let commit = match is_commit(revision) {
            true => revision.to_owned(),
            false => fs::read_to_string(self.dir.join("refs").join(revision)).ok()?.trim().to_owned(),
        };
        Some(self.snapshot_dir(&commit)).filter(|dir| dir.is_dir())
    }

    pub(super) fn write_ref(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if is_commit(revision) {
            return Ok(());
        }
        let path = self.dir.join("refs").join(revision);
        create_parent(&path)?;
        fs::write(&path, commit).map_err(HubError::file("write", path))
    }

    /// Where a file of a snapshot is found.
    pub(super) fn pointer(&self, commit: &str, file: &str) -> PathBuf {
        self.snapshot_dir(commit).join(file)
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.dir.join("blobs").join(etag)
    }

    /// Waits until no other process fetches the blob; it is ours until the file is dropped.
    pub(super) fn lock(&self, etag: &str) -> Result<File, HubError> {
        let path = self.locks_dir.join(format!("{etag}.lock"));
        create_parent(&path)?;
        let file = File::create(&path).map_err(HubError::file("create", &path))?;
        if file.try_lock().is_err() {
            tracing::info!("waiting for another process that holds {}", path.display());
            file.lock().map_err(HubError::file("lock", &path))?;
        }
        Ok(file)
    }

    /// Puts a blob into a snapshot: as a relative link, or as a copy where the file system has no links.
    pub(super) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<(), HubError> {
        let pointer = self.pointer(commit, file);
        create_parent(&pointer)?;
        if pointer.exists() {
            return Ok(());
        }
        // A link whose blob was deleted is in the way.
        if pointer.is_symlink() {
            fs::remove_file(&pointer).map_err(HubError::file("replace", &pointer))?;
        }
        #[cfg(unix)]
        {
            let linked = std::os::unix::fs::symlink(Path::new("../../blobs").join(etag), &pointer);
            // Another process may have been faster.
            if linked.is_ok() || pointer.exists() {
                return Ok(());
            }
        }
        fs::copy(self.blob(etag), &pointer).map(|_| ()).map_err(HubError::file("write", pointer))
    }
}

pub(super) fn create_parent(path: &Path) -> Result<(), HubError> {
    match path.parent() {
        Some(parent) => fs::create_dir_all(parent).map_err(HubError::file("create", parent)),
        None => Ok(()),
    }
}
