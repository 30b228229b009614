use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, IsTerminal, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::ProgressBar;
use ureq::http::StatusCode;

use super::HubError;
use super::cache::{RepoCache, create_parent};
use super::client::{Client, FileInfo, header};
use crate::progress::style;

/// Attempts in a row that bring not a single byte.
const MAX_IDLE_ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const CHUNK_BYTES: usize = 1 << 18;

/// Makes sure that a snapshot holds a file: nothing to do where it does, else a link to the blob, which is fetched
/// where it is not here yet.
pub(super) fn fetch_file(
    client: &Client,
    cache: &RepoCache,
    commit: &str,
    file: &str,
    progress: bool,
) -> Result<(), HubError> {
    if cache.pointer(commit, file).exists() {
        return Ok(());
    }
    let info = client.file_info(commit, file)?;
    let blob = cache.blob(&info.etag);
    if !blob.exists() {
        let _lock = cache.lock(&info.etag)?;
        // Another process may have fetched it while this one waited.
        if !blob.exists() {
            let bar = (progress && std::io::stderr().is_terminal()).then(|| bar(file, info.size_bytes));
            let result =
                Download { client, url: client.file_url(commit, file), file, info: &info, bar }.run(&blob);
            result?;
        }
    }
    cache.link(commit, file, &info.etag)
}

fn bar(file: &str, size_bytes: u64) -> ProgressBar {
    let bar = ProgressBar::new(size_bytes);
    bar.set_style(style("{bar:30} {msg} {bytes}/{total_bytes} ({binary_bytes_per_sec}, {eta} left)"));
    bar.set_message(file.to_owned());
    bar
}

struct Download<'a> {
    client: &'a Client<'a>,
    url: String,
    file: &'a str,
    info: &'a FileInfo,
    bar: Option<ProgressBar>,
}

/// Why a transfer ended early.
enum Interrupted {
    /// Worth another attempt from where it ended.
    Retry(HubError),
    Fatal(HubError),
}

impl Download<'_> {
    /// Fetches into `BLOB.incomplete`, going on from what an earlier attempt left there, then renames it.
    fn run(&self, blob: &Path) -> Result<(), HubError> {
        let mut name = blob.as_os_str().to_owned();
        name.push(".incomplete");
        let partial = PathBuf::from(name);
        create_parent(&partial)?;
        let open = OpenOptions::new().create(true).truncate(false).write(true).open(&partial);
        let mut file = open.map_err(HubError::file("create", &partial))?;
        let mut num_idle = 0;
        loop {
            let before = self.prepare(&mut file, &partial)?;
            if before == self.info.size_bytes {
                break;
            }
            match self.transfer(&mut file, &partial, before) {
                Ok(()) => {}
                Err(Interrupted::Fatal(error)) => return Err(error),
                Err(Interrupted::Retry(error)) => {
                    let after = file.stream_position().map_err(HubError::file("write", &partial))?;
                    num_idle = if after > before { 0 } else { num_idle + 1 };
                    if num_idle == MAX_IDLE_ATTEMPTS {
                        return Err(error);
                    }
                    tracing::debug!("{error}; trying again from byte {after}");
                    std::thread::sleep(FIRST_PAUSE * 2u32.pow(num_idle));
                    continue;
                }
            }
            let found = file.stream_position().map_err(HubError::file("write", &partial))?;
            if found != self.info.size_bytes {
                // Resuming would append to content that is not the file's.
                let _ = fs::remove_file(&partial);
                return Err(HubError::Size { file: self.file.into(), expected: self.info.size_bytes, found });
            }
        }
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        file.sync_all().map_err(|e| self.write_error(e, &partial, 0))?;
        fs::rename(&partial, blob).map_err(HubError::file("rename", partial))
    }

    /// Goes to the end of what is here, or to the start where that is more than the file; returns the position.
    fn prepare(&self, file: &mut File, partial: &Path) -> Result<u64, HubError> {
        let seek = |file: &mut File| {
            let len = file.seek(SeekFrom::End(0))?;
            if len <= self.info.size_bytes {
                return Ok(len);
            }
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))
        };
        seek(file).map_err(HubError::file("write", partial))
    }

    fn transfer(&self, file: &mut File, partial: &Path, offset: u64) -> Result<(), Interrupted> {
        let response = self.client.get(&self.url, offset).map_err(Interrupted::Retry)?;
        let status = response.status();
        let resumed = status == StatusCode::PARTIAL_CONTENT
            && header(&response, "content-range").is_some_and(|r| r.starts_with(&format!("bytes {offset}-")));
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            let why = format!("HTTP status {status}");
            return Err(Interrupted::Retry(HubError::Answer { url: self.url.clone(), why }));
        }
        let fatal = HubError::file("write", partial);
        if status == StatusCode::RANGE_NOT_SATISFIABLE || (status.is_success() && offset > 0 && !resumed) {
            // The server does not go on from here: from the start.
            file.set_len(0)
                .and_then(|()| file.seek(SeekFrom::Start(0)))
                .map_err(|e| Interrupted::Fatal(fatal(e)))?;
            if !status.is_success() {
                let why = format!("HTTP status {status}");
                return Err(Interrupted::Retry(HubError::Answer { url: self.url.clone(), why }));
            }
        } else {
            self.client.check(&response, &self.url, "").map_err(Interrupted::Fatal)?;
        }
        let mut position = if resumed { offset } else { 0 };
        let mut body = response.into_body().into_reader();
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let len = match body.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => {
                    let why = format!("the transfer broke off at byte {position}: {error}");
                    return Err(Interrupted::Retry(HubError::Answer { url: self.url.clone(), why }));
                }
            };
            let left = self.info.size_bytes.saturating_sub(position);
            file.write_all(&chunk[..len])
                .map_err(|e| Interrupted::Fatal(self.write_error(e, partial, left)))?;
            position += len as u64;
            if let Some(bar) = &self.bar {
                bar.set_position(position);
            }
        }
    }

    fn write_error(&self, error: std::io::Error, path: &Path, needed_bytes: u64) -> HubError {
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                HubError::DiskFull { path: path.into(), needed_bytes }
            }
            _ => HubError::file("write", path)(error),
        }
    }
}
