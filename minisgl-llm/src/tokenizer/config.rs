use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// What `tokenizer_config.json` says beside the tokenizer itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct TokenizerConfig {
    /// `bos_token`, `eos_token` and the other special tokens by name, as text: a template may use any of them.
    pub(crate) special_tokens: Map<String, Value>,
    /// Chat templates by name; one without a name is `default`.
    pub(crate) chat_templates: Vec<(String, String)>,
}

impl TokenizerConfig {
    /// Reads `tokenizer_config.json` of a model directory, then `chat_template.jinja` or `chat_template.json`,
    /// whose template goes before. Each may be absent.
    pub(crate) fn from_dir(dir: &Path) -> Result<Self> {
        let mut config = Self::default();
        if let Some(value) = read_json(&dir.join("tokenizer_config.json"))? {
            config.special_tokens = special_tokens(&value);
            config.chat_templates = chat_templates(&value["chat_template"]);
        }
        let jinja = dir.join("chat_template.jinja");
        let template = match std::fs::read_to_string(&jinja) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                read_json(&dir.join("chat_template.json"))?
                    .and_then(|value| value["chat_template"].as_str().map(str::to_owned))
            }
            Err(error) => return Err(Error::file("read", jinja)(error)),
        };
        if let Some(text) = template {
            config.chat_templates.retain(|(name, _)| name != "default");
            config.chat_templates.insert(0, ("default".into(), text));
        }
        Ok(config)
    }
}

fn read_json(path: &Path) -> Result<Option<Value>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::file("read", path)(error)),
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|why| Error::Tokenizer(format!("{} is not valid JSON: {why}", path.display())))
}

/// A special token is a string, or an object with its text as `content`.
fn special_tokens(config: &Value) -> Map<String, Value> {
    let Some(config) = config.as_object() else { return Map::new() };
    config
        .iter()
        .filter(|(name, _)| name.ends_with("_token"))
        .filter_map(|(name, value)| {
            let text = value.as_str().or_else(|| value["content"].as_str())?;
            Some((name.clone(), Value::String(text.into())))
        })
        .collect()
}

fn chat_templates(value: &Value) -> Vec<(String, String)> {
    if let Some(text) = value.as_str() {
        return vec![("default".into(), text.into())];
    }
    let named = value.as_array().into_iter().flatten();
    named.filter_map(|t| Some((t["name"].as_str()?.into(), t["template"].as_str()?.into()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    #[test]
    fn tokens_as_strings_and_as_objects() {
        let dir = dir(&[(
            "tokenizer_config.json",
            r#"{"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false}, "pad_token": null,
                "add_bos_token": true, "chat_template": "x"}"#,
        )]);
        let config = TokenizerConfig::from_dir(dir.path()).unwrap();
        assert_eq!(
            serde_json::to_string(&config.special_tokens).unwrap(),
            r#"{"bos_token":"<s>","eos_token":"</s>"}"#
        );
        assert_eq!(config.chat_templates, [("default".into(), "x".into())]);
    }

    #[test]
    fn a_template_file_goes_before_the_config() {
        let named = r#"{"chat_template": [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]}"#;
        let jinja = dir(&[
            ("tokenizer_config.json", named),
            ("chat_template.jinja", "c"),
            ("chat_template.json", r#"{"chat_template": "d"}"#),
        ]);
        let templates = TokenizerConfig::from_dir(jinja.path()).unwrap().chat_templates;
        assert_eq!(templates, [("default".into(), "c".into()), ("tool_use".into(), "b".into())]);
        let json = dir(&[("chat_template.json", r#"{"chat_template": "d"}"#)]);
        let templates = TokenizerConfig::from_dir(json.path()).unwrap().chat_templates;
        assert_eq!(templates, [("default".into(), "d".into())]);
    }

    #[test]
    fn nothing_there_is_no_error_and_broken_json_names_the_file() {
        assert!(TokenizerConfig::from_dir(dir(&[]).path()).unwrap().chat_templates.is_empty());
        let broken = dir(&[("tokenizer_config.json", "{")]);
        let error = TokenizerConfig::from_dir(broken.path()).unwrap_err().to_string();
        assert!(error.contains("tokenizer_config.json is not valid JSON: EOF"), "{error}");
    }
}
