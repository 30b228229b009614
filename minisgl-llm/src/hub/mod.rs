//! Models by id: fetched from the Hugging Face hub, or a server like it, into the cache that Python's
//! `huggingface_hub` uses, so that either finds what the other fetched.
//!
//! ```text
//! models--org--name/refs/main                    the commit that main was at
//! models--org--name/snapshots/COMMIT/config.json a link to ../../blobs/ETAG
//! models--org--name/blobs/ETAG                   the file; ETAG.incomplete while it is fetched
//! .locks/models--org--name/ETAG.lock             held by the process that fetches it
//! ```

mod cache;
mod client;
mod download;
mod error;
mod files;
mod settings;

use std::path::PathBuf;

use cache::RepoCache;
use client::Client;
pub use error::HubError;
pub use settings::HubSettings;

/// Fetches what is needed of `org/name` or `org/name@revision` and not in the cache yet; returns the directory
/// that holds it. `weights` says whether the weights are needed too, `progress` whether to show bars where
/// standard error is a terminal.
///
/// A snapshot that is complete in the cache is used without the network where the settings say offline, where the
/// revision is a commit, and where the server cannot be reached.
///
/// # Errors
/// There is no such model or revision, access is refused, the model holds no safetensors, the transfer fails
/// again and again, the disk is full.
pub fn fetch_model(
    model: &str,
    weights: bool,
    settings: &HubSettings,
    progress: bool,
) -> Result<PathBuf, HubError> {
    let (id, revision) = model.split_once('@').unwrap_or((model, "main"));
    let cache = RepoCache::new(&settings.cache_dir, id);
    let cached = cache.snapshot(revision).filter(|dir| files::is_complete(dir, weights));
    if settings.offline {
        return cached.ok_or_else(|| HubError::Offline {
            id: id.into(),
            revision: revision.into(),
            cache_dir: settings.cache_dir.clone(),
        });
    }
    if let (true, Some(dir)) = (cache::is_commit(revision), &cached) {
        return Ok(dir.clone());
    }
    let client = Client::new(settings, id);
    let info = match (client.repo_info(revision), cached) {
        (Ok(info), _) => info,
        (Err(error @ HubError::Unreachable { .. }), Some(dir)) => {
            tracing::warn!("{error}; using the files in {}", dir.display());
            return Ok(dir);
        }
        (Err(error), _) => return Err(error),
    };
    let fetch = |file: &str| download::fetch_file(&client, &cache, &info.commit, file, progress);
    for file in files::small_files(&info.files) {
        fetch(file)?;
    }
    if weights {
        match files::weights(&info.files, id)? {
            files::Weights::Single(file) => fetch(file)?,
            files::Weights::Sharded(index) => {
                fetch(index)?;
                for shard in files::shards(&cache.pointer(&info.commit, index))? {
                    fetch(&shard)?;
                }
            }
        }
    }
    cache.write_ref(revision, &info.commit)?;
    Ok(cache.snapshot_dir(&info.commit))
}

#[cfg(test)]
mod tests;
