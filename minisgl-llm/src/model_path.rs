use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The directory of a model's files: `model` itself, or where the hub's files were fetched to.
pub(crate) fn resolve(
    model: &str,
    weights: bool,
    progress: bool,
    #[cfg(feature = "hub")] hub: Option<&crate::hub::HubSettings>,
) -> Result<PathBuf> {
    let path = Path::new(model);
    if path.is_dir() {
        if path.join("config.json").is_file() {
            return Ok(path.into());
        }
        return Err(Error::Model(format!(
            "the directory {model} holds no config.json: expected a model's Hugging Face files"
        )));
    }
    if path.exists() {
        return Err(Error::Model(format!("{model} is a file, expected a directory of Hugging Face files")));
    }
    if !is_model_id(model) {
        return Err(Error::Model(format!(
            "'{model}' is neither a directory nor a model id like org/name or org/name@revision"
        )));
    }
    #[cfg(feature = "hub")]
    {
        let from_env;
        let settings = match hub {
            Some(settings) => settings,
            None => {
                from_env = crate::hub::HubSettings::from_env(|name| std::env::var(name).ok());
                &from_env
            }
        };
        crate::hub::fetch_model(model, weights, settings, progress)
            .map_err(|e| Error::Model(format!("there is no directory {model}, and as a model id: {e}")))
    }
    #[cfg(not(feature = "hub"))]
    {
        let _ = (weights, progress);
        Err(Error::Model(format!(
            "there is no directory {model}, and this program was built without the feature `hub` that fetches models"
        )))
    }
}

/// `org/name`, maybe with `@revision`.
fn is_model_id(text: &str) -> bool {
    let is_name = |name: &str| {
        !name.is_empty()
            && !name.starts_with(['.', '-'])
            && !name.contains("..")
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let (id, revision) = text.split_once('@').unwrap_or((text, "main"));
    let parts: Vec<&str> = id.split('/').collect();
    matches!(parts[..], [org, name] if is_name(org) && is_name(name))
        && !revision.is_empty()
        && revision.split('/').all(is_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "hub")]
    #[test]
    fn a_directory_that_is_missing_is_named_before_the_hub() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path().to_str().unwrap().to_owned();
        let env = |name: &str| match name {
            "HF_HOME" => Some(home.clone()),
            "HF_HUB_OFFLINE" => Some("1".into()),
            _ => None,
        };
        let settings = crate::hub::HubSettings::from_env(env);
        let error = resolve("models/nope", false, false, Some(&settings)).unwrap_err().to_string();
        assert!(error.starts_with("there is no directory models/nope, and as a model id: "), "{error}");
    }

    #[test]
    fn ids_and_what_is_none() {
        for id in ["org/name", "Qwen/Qwen2.5-0.5B", "a/b@v1.0", "a/b@refs/pr/3", "a/b_c@0123abc"] {
            assert!(is_model_id(id), "{id}");
        }
        for text in
            ["name", "a/b/c", "/a/b", "./a/b", "a/", "a/b@", "../b/c", "a/..", "a b/c", "a/b@../x", ""]
        {
            assert!(!is_model_id(text), "{text}");
        }
    }
}
