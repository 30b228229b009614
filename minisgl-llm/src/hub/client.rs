use std::time::Duration;

use serde_json::Value;
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

use super::{HubError, HubSettings};

/// Speaks to the hub about one model.
pub(super) struct Client<'a> {
    agent: Agent,
    settings: &'a HubSettings,
    id: &'a str,
}

/// A model at one revision.
pub(super) struct RepoInfo {
    pub(super) commit: String,
    pub(super) files: Vec<String>,
}

/// A file before it is fetched.
pub(super) struct FileInfo {
    /// Names the content: the name of the blob.
    pub(super) etag: String,
    pub(super) size_bytes: u64,
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// A transfer that delivers nothing for so long is taken up again on a new connection.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_REDIRECTS: usize = 10;

impl<'a> Client<'a> {
    pub(super) fn new(settings: &'a HubSettings, id: &'a str) -> Self {
        let config = Agent::config_builder()
            // Redirects are followed here: the token must not go to another host, and the headers of the first
            // answer say what the file is.
            .max_redirects(0)
            .http_status_as_error(false)
            // Ranges and sizes are those of the file as it is.
            .accept_encoding("identity")
            .user_agent(concat!("minisgl/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(ANSWER_TIMEOUT))
            .timeout_per_read(Some(STALL_TIMEOUT))
            .build();
        Self { agent: config.new_agent(), settings, id }
    }

    /// The commit and the files of a revision.
    pub(super) fn repo_info(&self, revision: &str) -> Result<RepoInfo, HubError> {
        let revision_path = revision.replace('/', "%2F");
        let url = format!("{}/api/models/{}/revision/{revision_path}", self.settings.endpoint, self.id);
        let mut response = self.get(&url, 0)?;
        self.check(&response, &url, revision)?;
        let answer = |why: String| HubError::Answer { url: url.clone(), why };
        let text = response.body_mut().read_to_string().map_err(|e| answer(e.to_string()))?;
        let value: Value = serde_json::from_str(&text).map_err(|e| answer(format!("not valid JSON: {e}")))?;
        let commit = value["sha"].as_str().filter(|commit| is_file_name(commit));
        let commit = commit.ok_or_else(|| answer("the answer names no commit".into()))?;
        let files = value["siblings"].as_array().into_iter().flatten();
        let files = files.filter_map(|file| file["rfilename"].as_str().map(str::to_owned)).collect();
        Ok(RepoInfo { commit: commit.to_owned(), files })
    }

    /// What a file is. Redirects within the host are followed; one to another host is where the content is.
    pub(super) fn file_info(&self, commit: &str, file: &str) -> Result<FileInfo, HubError> {
        let mut url = self.file_url(commit, file);
        for _ in 0..MAX_REDIRECTS {
            let request = self.authorized(self.agent.head(&url), &url);
            let response = request.call().map_err(|e| unreachable(&url, &e))?;
            let location = header(&response, "location");
            match location {
                Some(location) if response.status().is_redirection() && location.starts_with('/') => {
                    url = join(&url, location);
                }
                _ if response.status().is_redirection() => return file_info(&response, &url),
                _ => {
                    self.check(&response, &url, commit)?;
                    return file_info(&response, &url);
                }
            }
        }
        Err(HubError::Answer { url, why: format!("more than {MAX_REDIRECTS} redirects") })
    }

    pub(super) fn file_url(&self, commit: &str, file: &str) -> String {
        format!("{}/{}/resolve/{commit}/{file}", self.settings.endpoint, self.id)
    }

    /// Asks for `url` from byte `offset` on, through redirects.
    pub(super) fn get(&self, url: &str, offset: u64) -> Result<Response<Body>, HubError> {
        let mut url = url.to_owned();
        for _ in 0..MAX_REDIRECTS {
            let mut request = self.authorized(self.agent.get(&url), &url);
            if offset > 0 {
                request = request.header("range", format!("bytes={offset}-"));
            }
            let response = request.call().map_err(|e| unreachable(&url, &e))?;
            match header(&response, "location") {
                Some(location) if response.status().is_redirection() => url = join(&url, location),
                _ => return Ok(response),
            }
        }
        Err(HubError::Answer { url, why: format!("more than {MAX_REDIRECTS} redirects") })
    }

    fn authorized<B>(&self, request: ureq::RequestBuilder<B>, url: &str) -> ureq::RequestBuilder<B> {
        match &self.settings.token {
            Some(token) if origin(url) == origin(&self.settings.endpoint) => {
                request.header("authorization", format!("Bearer {token}"))
            }
            _ => request,
        }
    }

    /// Turns an answer without content into the error that it is.
    pub(super) fn check(&self, response: &Response<Body>, url: &str, revision: &str) -> Result<(), HubError> {
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let endpoint = self.settings.endpoint.clone();
        let id = self.id.to_owned();
        let code = header(response, "x-error-code").unwrap_or_default();
        let gated = code == "GatedRepo";
        Err(match status {
            StatusCode::NOT_FOUND if code == "RevisionNotFound" => {
                HubError::NoRevision { id, revision: revision.into() }
            }
            StatusCode::NOT_FOUND if code != "EntryNotFound" => HubError::NoModel { id, endpoint },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let hint = match (gated, self.settings.token.is_some()) {
                    (true, true) => format!("the model is gated; ask for access at {endpoint}/{id}"),
                    (true, false) => {
                        format!("the model is gated; ask for access at {endpoint}/{id} and set HF_TOKEN")
                    }
                    (false, true) => "check the name, and whether the token in use may read it".into(),
                    (false, false) => "check the name; if the model is private or gated, set HF_TOKEN".into(),
                };
                HubError::Denied { id, endpoint, status: status.as_u16(), hint }
            }
            _ => HubError::Answer { url: url.into(), why: format!("HTTP status {status}") },
        })
    }
}

fn file_info(response: &Response<Body>, url: &str) -> Result<FileInfo, HubError> {
    let answer = |why: &str| HubError::Answer { url: url.into(), why: why.into() };
    let etag = header(response, "x-linked-etag").or_else(|| header(response, "etag"));
    let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"')).filter(|e| is_file_name(e));
    let size = header(response, "x-linked-size").or_else(|| header(response, "content-length"));
    Ok(FileInfo {
        etag: etag.ok_or_else(|| answer("the answer has no ETag"))?.to_owned(),
        size_bytes: size.and_then(|s| s.parse().ok()).ok_or_else(|| answer("the answer has no size"))?,
    })
}

pub(super) fn header<'r>(response: &'r Response<Body>, name: &str) -> Option<&'r str> {
    response.headers().get(name)?.to_str().ok()
}

fn unreachable(url: &str, error: &ureq::Error) -> HubError {
    HubError::Unreachable { url: url.into(), why: error.to_string() }
}

/// Whether a name from the server may become a file name.
fn is_file_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// Scheme, host and port.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |i| i + 3);
    url[host..].find('/').map_or(url, |end| &url[..host + end])
}

fn join(base: &str, location: &str) -> String {
    if location.starts_with("//") {
        let scheme = base.split_once("//").map_or("https:", |(scheme, _)| scheme);
        format!("{scheme}{location}")
    } else if location.starts_with('/') {
        format!("{}{location}", origin(base))
    } else {
        location.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations() {
        let base = "http://a:1/b/c";
        assert_eq!(join(base, "/d"), "http://a:1/d");
        assert_eq!(join(base, "//e/f"), "http://e/f");
        assert_eq!(join(base, "https://g/h"), "https://g/h");
        assert_eq!(origin("http://a:1"), "http://a:1");
    }
}
