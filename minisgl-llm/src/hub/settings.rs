use std::path::{Path, PathBuf};

/// Where models are fetched from and kept.
#[derive(Clone)]
pub struct HubSettings {
    /// The server, without a slash at the end.
    pub endpoint: String,
    /// The directory of `models--org--name` directories.
    pub cache_dir: PathBuf,
    /// What private and gated models ask for. Sent to the endpoint's host only.
    pub token: Option<String>,
    /// Use the cache alone.
    pub offline: bool,
}

impl HubSettings {
    /// The settings that the environment asks for, through `var`: `HF_ENDPOINT`, `HF_HUB_CACHE` or `HF_HOME`,
    /// `HF_TOKEN` or the token file (`HF_TOKEN_PATH`, else `token` in `HF_HOME`), `HF_HUB_OFFLINE`.
    pub fn from_env(var: impl Fn(&str) -> Option<String>) -> Self {
        let var = |name: &str| var(name).filter(|value| !value.trim().is_empty());
        let home = var("HF_HOME").map_or_else(
            || match var("XDG_CACHE_HOME") {
                Some(dir) => Path::new(&dir).join("huggingface"),
                None => Path::new(&var("HOME").unwrap_or_default()).join(".cache/huggingface"),
            },
            PathBuf::from,
        );
        let cache_dir = var("HF_HUB_CACHE").or_else(|| var("HUGGINGFACE_HUB_CACHE"));
        let token_path = var("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        let token = var("HF_TOKEN")
            .or_else(|| var("HUGGING_FACE_HUB_TOKEN"))
            .or_else(|| std::fs::read_to_string(token_path).ok())
            .map(|token| token.trim().to_owned())
            .filter(|token| !token.is_empty());
        let is_on =
            |name| var(name).is_some_and(|v| ["1", "on", "yes", "true"].contains(&v.to_lowercase().as_str()));
        let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            cache_dir: cache_dir.map_or_else(|| home.join("hub"), PathBuf::from),
            token,
            offline: is_on("HF_HUB_OFFLINE") || is_on("TRANSFORMERS_OFFLINE"),
        }
    }
}

impl std::fmt::Debug for HubSettings {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubSettings")
            .field("endpoint", &self.endpoint)
            .field("cache_dir", &self.cache_dir)
            .field("token", &self.token.as_ref().map(|_| "..."))
            .field("offline", &self.offline)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(vars: &[(&str, &str)]) -> HubSettings {
        HubSettings::from_env(|name| {
            vars.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn cache_directories_in_order() {
        let cases: &[(&[(&str, &str)], &str)] = &[
            (&[("HOME", "/h")], "/h/.cache/huggingface/hub"),
            (&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/f")], "/f/hub"),
            (&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")], "/c"),
            (&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "")], "/f/hub"),
        ];
        for (vars, expected) in cases {
            assert_eq!(from(vars).cache_dir, Path::new(expected), "{vars:?}");
        }
    }

    #[test]
    fn token_from_variable_or_file_and_never_printed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "from-file\n").unwrap();
        let home = dir.path().to_str().unwrap();
        assert_eq!(from(&[("HF_HOME", home)]).token.as_deref(), Some("from-file"));
        let settings = from(&[("HF_HOME", home), ("HF_TOKEN", " from-variable ")]);
        assert_eq!(settings.token.as_deref(), Some("from-variable"));
        assert!(!format!("{settings:?}").contains("from-variable"));
        assert_eq!(from(&[("HF_HOME", "/nowhere")]).token, None);
    }

    #[test]
    fn switches_and_endpoint() {
        for (value, expected) in
            [("1", true), ("TRUE", true), ("on", true), ("0", false), ("no", false), ("", false)]
        {
            assert_eq!(from(&[("HF_HUB_OFFLINE", value)]).offline, expected, "{value}");
        }
        assert_eq!(from(&[("HF_ENDPOINT", "http://localhost:1/")]).endpoint, "http://localhost:1");
        assert_eq!(from(&[]).endpoint, "https://huggingface.co");
    }
}
