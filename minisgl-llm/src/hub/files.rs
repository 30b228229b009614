//! Which files of a model are needed.

use std::collections::BTreeSet;
use std::path::Path;

use super::HubError;

/// What is fetched beside the weights, where the model has it.
const SMALL_FILES: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
];
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

pub(super) enum Weights<'a> {
    Single(&'a str),
    Sharded(&'a str),
}

pub(super) fn small_files(files: &[String]) -> impl Iterator<Item = &str> {
    files.iter().map(String::as_str).filter(|file| SMALL_FILES.contains(file))
}

pub(super) fn weights<'a>(files: &'a [String], id: &str) -> Result<Weights<'a>, HubError> {
    let find = |name| files.iter().map(String::as_str).find(|file| *file == name);
    if let Some(single) = find(SINGLE) {
        return Ok(Weights::Single(single));
    }
    if let Some(index) = find(INDEX) {
        return Ok(Weights::Sharded(index));
    }
    let others: Vec<&str> = files
        .iter()
        .map(String::as_str)
        .filter(|file| [".bin", ".pt", ".pth", ".gguf", ".safetensors"].iter().any(|end| file.ends_with(end)))
        .take(3)
        .collect();
    let others = if others.is_empty() { "no weights at all".into() } else { others.join(", ") };
    Err(HubError::Weights(format!("the model {id} has neither {SINGLE} nor {INDEX}, only {others}")))
}

/// The files that an index names.
pub(super) fn shards(index: &Path) -> Result<BTreeSet<String>, HubError> {
    let invalid = |why: String| HubError::Weights(format!("{}: {why}", index.display()));
    let bytes = std::fs::read(index).map_err(HubError::file("read", index))?;
    let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(|e| invalid(e.to_string()))?;
    let map = value["weight_map"].as_object().ok_or_else(|| invalid("there is no weight_map".into()))?;
    map.values()
        .map(|file| match file.as_str() {
            Some(name) if is_plain_name(name) => Ok(name.to_owned()),
            _ => Err(invalid(format!("weight_map names {file}, expected the name of a file"))),
        })
        .collect()
}

/// Whether a name stays inside of the directory that it is joined to.
fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\\']) && name != "." && name != ".."
}

/// Whether a snapshot holds all that is needed to load the model.
pub(super) fn is_complete(dir: &Path, weights: bool) -> bool {
    let has = |name: &str| dir.join(name).is_file();
    let has_weights = || {
        has(SINGLE)
            || shards(&dir.join(INDEX))
                .is_ok_and(|shards| !shards.is_empty() && shards.iter().all(|s| has(s)))
    };
    has("config.json") && (!weights || has_weights())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_stay_in_their_directory() {
        let dir = tempfile::tempdir().unwrap();
        let index = dir.path().join(INDEX);
        std::fs::write(&index, r#"{"weight_map": {"a": "x.safetensors", "b": "../../y"}}"#).unwrap();
        let error = shards(&index).unwrap_err().to_string();
        assert!(error.contains(r#"weight_map names "../../y""#), "{error}");
        std::fs::write(&index, r#"{"weight_map": {"a": "x", "b": "y", "c": "x"}}"#).unwrap();
        assert_eq!(shards(&index).unwrap().into_iter().collect::<Vec<_>>(), ["x", "y"]);
    }

    #[test]
    fn weights_that_cannot_be_read_are_named() {
        let files = ["config.json", "pytorch_model.bin", "q4.gguf"].map(String::from);
        let error = weights(&files, "a/b").err().unwrap().to_string();
        assert!(error.ends_with("only pytorch_model.bin, q4.gguf"), "{error}");
    }
}
