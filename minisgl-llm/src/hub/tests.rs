mod server;

use std::path::Path;

use server::{Page, Server};

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub that holds `org/name` at `main`, and a second host that holds its weights, as a content network does.
struct Hub {
    main: Server,
    content: Server,
    home: tempfile::TempDir,
    weights: Vec<u8>,
}

fn ok(body: impl Into<Vec<u8>>) -> Page {
    Page { status: 200, body: body.into(), ..Page::default() }
}

fn hub() -> Hub {
    let hub = Hub {
        main: Server::start(),
        content: Server::start(),
        home: tempfile::tempdir().unwrap(),
        weights: (0..1_000_003u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect(),
    };
    let files = ["config.json", "tokenizer.json", "README.md", "model.safetensors", "onnx/model.onnx"];
    hub.serve_info("main", &files);
    hub.serve_small("config.json", "{}");
    hub.serve_small("tokenizer.json", "{\"a\": 1}");
    hub.serve_large("model.safetensors", "w1", &hub.weights);
    hub
}

impl Hub {
    fn settings(&self) -> HubSettings {
        HubSettings {
            endpoint: self.main.url(),
            cache_dir: self.home.path().join("hub"),
            token: Some("secret".into()),
            offline: false,
        }
    }

    fn fetch(&self, model: &str) -> Result<PathBuf, HubError> {
        fetch_model(model, true, &self.settings(), false)
    }

    fn serve_info(&self, revision: &str, files: &[&str]) {
        let siblings: Vec<_> = files.iter().map(|f| serde_json::json!({"rfilename": f})).collect();
        let info = serde_json::json!({"sha": COMMIT, "siblings": siblings});
        self.main.page(format!("/api/models/org/name/revision/{revision}"), ok(info.to_string()));
    }

    fn serve_small(&self, file: &str, body: &str) {
        let etag = format!("\"{}-etag\"", file.replace('.', "-"));
        let page = Page { headers: vec![("etag", etag)], ..ok(body) };
        self.main.page(format!("/org/name/resolve/{COMMIT}/{file}"), page);
    }

    /// A file that the hub hands over to the other host.
    fn serve_large(&self, file: &str, etag: &str, body: &[u8]) {
        let headers = vec![
            ("location", format!("{}/content/{etag}", self.content.url())),
            ("x-linked-etag", format!("\"{etag}\"")),
            ("x-linked-size", body.len().to_string()),
        ];
        let page = Page { status: 302, headers, ..Page::default() };
        self.main.page(format!("/org/name/resolve/{COMMIT}/{file}"), page);
        self.content.page(format!("/content/{etag}"), ok(body));
    }

    fn blob(&self, etag: &str) -> PathBuf {
        self.home.path().join("hub/models--org--name/blobs").join(etag)
    }

    /// The `Range` of each request for content.
    fn ranges(&self) -> Vec<Option<String>> {
        self.content.take_seen().iter().map(|seen| seen.headers.get("range").cloned()).collect()
    }
}

#[test]
fn fetches_what_is_needed_into_pythons_layout_and_only_once() {
    let hub = hub();
    let dir = hub.fetch("org/name").unwrap();
    assert_eq!(dir, hub.home.path().join("hub/models--org--name/snapshots").join(COMMIT));
    let repo = hub.home.path().join("hub/models--org--name");
    assert_eq!(std::fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    let link = std::fs::read_link(dir.join("model.safetensors")).unwrap();
    assert_eq!(link, Path::new("../../blobs/w1"));
    assert!(std::fs::read(dir.join("model.safetensors")).unwrap() == hub.weights);
    let mut names: Vec<_> =
        std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json"]);

    hub.main.take_seen();
    assert_eq!(hub.fetch("org/name").unwrap(), dir);
    let paths: Vec<_> = hub.main.take_seen().into_iter().map(|seen| seen.path).collect();
    assert_eq!(paths, ["/api/models/org/name/revision/main"]);
    assert_eq!(hub.fetch(&format!("org/name@{COMMIT}")).unwrap(), dir);
    assert!(hub.main.take_seen().is_empty(), "a commit never changes");
}

#[test]
fn the_token_goes_to_the_endpoint_alone() {
    let hub = hub();
    hub.fetch("org/name").unwrap();
    let seen = hub.main.take_seen();
    assert!(
        seen.iter().all(|s| s.headers.get("authorization").is_some_and(|a| a == "Bearer secret")),
        "{seen:?}"
    );
    let seen = hub.content.take_seen();
    assert_eq!(seen.len(), 1, "HEAD is answered by the endpoint");
    assert_eq!(seen[0].method, "GET");
    assert!(!seen[0].headers.contains_key("authorization"));
}

#[test]
fn goes_on_where_a_cut_connection_ended() {
    let hub = hub();
    let page = Page { cuts: vec![300_000, 0, 500_000], ..ok(hub.weights.clone()) };
    hub.content.page("/content/w1", page);
    let dir = hub.fetch("org/name").unwrap();
    assert!(std::fs::read(dir.join("model.safetensors")).unwrap() == hub.weights);
    let ranges = hub.ranges();
    assert_eq!(ranges.len(), 4);
    assert_eq!(ranges[0], None);
    let offset = |i: usize| -> usize {
        let range: &Option<String> = &ranges[i];
        range.as_ref().unwrap().strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap()
    };
    assert!(offset(1) <= 300_000 && offset(1) == offset(2) && offset(2) < offset(3), "{ranges:?}");
}

#[test]
fn goes_on_after_another_process_was_killed() {
    let hub = hub();
    std::fs::create_dir_all(hub.blob("x").parent().unwrap()).unwrap();
    std::fs::write(hub.blob("w1.incomplete"), &hub.weights[..1234]).unwrap();
    let dir = hub.fetch("org/name").unwrap();
    assert!(std::fs::read(dir.join("model.safetensors")).unwrap() == hub.weights);
    assert_eq!(hub.ranges(), [Some("bytes=1234-".into())]);
    assert!(!hub.blob("w1.incomplete").exists());
}

#[test]
fn starts_again_where_the_server_knows_no_ranges() {
    let hub = hub();
    std::fs::create_dir_all(hub.blob("x").parent().unwrap()).unwrap();
    std::fs::write(hub.blob("w1.incomplete"), b"garbage").unwrap();
    hub.content.page("/content/w1", Page { ignores_ranges: true, ..ok(hub.weights.clone()) });
    let dir = hub.fetch("org/name").unwrap();
    assert!(std::fs::read(dir.join("model.safetensors")).unwrap() == hub.weights);
}

#[test]
fn gives_up_when_nothing_comes() {
    let hub = hub();
    hub.content.page("/content/w1", Page { cuts: vec![0; 20], ..ok(hub.weights.clone()) });
    let error = hub.fetch("org/name").unwrap_err().to_string();
    assert!(error.contains("broke off at byte 0"), "{error}");
    assert_eq!(hub.ranges().len(), 5);
}

#[test]
fn a_wrong_size_is_an_error_and_leaves_nothing() {
    let hub = hub();
    hub.content.page("/content/w1", ok(&hub.weights[..500]));
    let error = hub.fetch("org/name").unwrap_err().to_string();
    assert_eq!(error, "model.safetensors has 500 bytes, expected 1000003: it was deleted; try again");
    assert!(!hub.blob("w1").exists() && !hub.blob("w1.incomplete").exists());
}

#[test]
fn shards_come_from_the_index() {
    let hub = hub();
    hub.serve_info(
        "main",
        &["config.json", "model.safetensors.index.json", "a.safetensors", "b.safetensors"],
    );
    hub.serve_small(
        "model.safetensors.index.json",
        r#"{"weight_map": {"x": "a.safetensors", "y": "b.safetensors", "z": "a.safetensors"}}"#,
    );
    hub.serve_large("a.safetensors", "wa", b"aaa");
    hub.serve_large("b.safetensors", "wb", b"bb");
    let dir = hub.fetch("org/name").unwrap();
    assert_eq!(std::fs::read(dir.join("a.safetensors")).unwrap(), b"aaa");
    assert_eq!(std::fs::read(dir.join("b.safetensors")).unwrap(), b"bb");
    assert_eq!(hub.ranges().len(), 2);
}

#[test]
fn without_weights_none_are_fetched() {
    let hub = hub();
    let dir = fetch_model("org/name", false, &hub.settings(), false).unwrap();
    assert!(dir.join("config.json").exists() && !dir.join("model.safetensors").exists());
}

#[test]
fn revisions_with_slashes() {
    let hub = hub();
    hub.serve_info("refs%2Fpr%2F1", &["config.json", "model.safetensors"]);
    hub.fetch("org/name@refs/pr/1").unwrap();
    assert!(hub.home.path().join("hub/models--org--name/refs/refs/pr/1").exists());
}

#[test]
fn offline_uses_the_cache_and_says_what_is_missing() {
    let hub = hub();
    let offline = HubSettings { offline: true, ..hub.settings() };
    let error = fetch_model("org/name", true, &offline, false).unwrap_err().to_string();
    assert!(error.starts_with("org/name at revision 'main' is not complete in the cache "), "{error}");
    assert!(error.ends_with("and HF_HUB_OFFLINE forbids to fetch it"), "{error}");
    let dir = hub.fetch("org/name").unwrap();
    hub.main.take_seen();
    assert_eq!(fetch_model("org/name", true, &offline, false).unwrap(), dir);
    assert!(hub.main.take_seen().is_empty());
    std::fs::remove_file(hub.blob("w1")).unwrap();
    assert!(fetch_model("org/name", true, &offline, false).is_err(), "a link without its blob is no file");
    assert!(fetch_model("org/name", false, &offline, false).is_ok());
    hub.fetch("org/name").unwrap();
    assert!(fetch_model("org/name", true, &offline, false).is_ok(), "the link was replaced");
}

#[test]
fn a_server_that_cannot_be_reached_is_survived_by_a_complete_cache() {
    let hub = hub();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let unreachable = HubSettings { endpoint: format!("http://{closed}"), ..hub.settings() };
    let error = fetch_model("org/name", true, &unreachable, false).unwrap_err().to_string();
    assert!(error.starts_with(&format!("cannot reach http://{closed}/api/models/org/name")), "{error}");
    let dir = hub.fetch("org/name").unwrap();
    assert_eq!(fetch_model("org/name", true, &unreachable, false).unwrap(), dir);
}

#[test]
fn refusals_say_what_to_do() {
    let hub = hub();
    let url = hub.main.url();
    let code =
        |status, code: &str| Page { status, headers: vec![("x-error-code", code.into())], ..Page::default() };
    let cases = [
        (code(404, "RepoNotFound"), format!("there is no model org/name on {url}")),
        (code(404, "RevisionNotFound"), "the model org/name has no revision 'v9'".into()),
        (
            code(401, ""),
            format!(
                "{url} refuses access to org/name (HTTP 401): check the name, and whether the token in use may read it"
            ),
        ),
        (
            code(403, "GatedRepo"),
            format!(
                "{url} refuses access to org/name (HTTP 403): the model is gated; ask for access at {url}/org/name"
            ),
        ),
        (code(500, ""), format!("{url}/api/models/org/name/revision/v9: HTTP status 500")),
    ];
    for (page, expected) in cases {
        hub.main.page("/api/models/org/name/revision/v9", page);
        let error = hub.fetch("org/name@v9").unwrap_err().to_string();
        assert!(error.starts_with(&expected), "{error}");
    }
    let no_token = HubSettings { token: None, ..hub.settings() };
    hub.main.page("/api/models/org/name/revision/v9", code(401, "GatedRepo"));
    let error = fetch_model("org/name@v9", true, &no_token, false).unwrap_err().to_string();
    assert!(error.ends_with("and set HF_TOKEN"), "{error}");
}

#[test]
fn a_broken_answer_is_named() {
    let hub = hub();
    hub.main.page("/api/models/org/name/revision/main", ok("<html>"));
    let error = hub.fetch("org/name").unwrap_err().to_string();
    assert!(error.contains("/api/models/org/name/revision/main: not valid JSON: "), "{error}");
    hub.main.page("/api/models/org/name/revision/main", ok(r#"{"sha": "../x"}"#));
    let error = hub.fetch("org/name").unwrap_err().to_string();
    assert!(error.ends_with("the answer names no commit"), "{error}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_named_with_what_is_needed() {
    let hub = hub();
    std::fs::create_dir_all(hub.blob("x").parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("/dev/full", hub.blob("w1.incomplete")).unwrap();
    let error = hub.fetch("org/name").unwrap_err().to_string();
    assert!(
        error.starts_with("no space left for ") && error.ends_with("needs 1000003 bytes more"),
        "{error}"
    );
}

#[test]
fn two_at_once_fetch_once() {
    let hub = hub();
    std::thread::scope(|scope| {
        let both = [0, 1].map(|_| scope.spawn(|| hub.fetch("org/name").unwrap()));
        for thread in both {
            let dir = thread.join().unwrap();
            assert!(std::fs::read(dir.join("model.safetensors")).unwrap() == hub.weights);
        }
    });
    assert_eq!(hub.ranges(), [None]);
}
