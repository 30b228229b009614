//! Typed access to a JSON object, with errors that name file, field and value.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{EngineError, Result};

/// The fields of one JSON object in one file.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    /// For errors: the file, and the object within it where it is not the outermost.
    pub(super) place: &'a str,
    pub(super) map: &'a Map<String, Value>,
}

/// Keeps every product of sizes that a model's memory needs within 64 bits.
const MAX_SIZE: u64 = 1 << 24;

/// Reads a JSON file.
pub(super) fn read_json(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| EngineError::Model(format!("cannot read {}: {error}", path.display())))?;
    serde_json::from_str(&text)
        .map_err(|error| EngineError::Model(format!("{} is not valid JSON: {error}", path.display())))
}

impl<'a> Fields<'a> {
    pub(super) fn of(place: &'a str, value: &'a Value) -> Result<Self> {
        let map = value.as_object().ok_or_else(|| {
            EngineError::Model(format!("{place} holds {}, expected an object", kind(value)))
        })?;
        Ok(Self { place, map })
    }

    pub(super) fn error(&self, name: &str, expected: &str) -> EngineError {
        let found = match self.map.get(name) {
            Some(value) => format!("is {}", shorten(value)),
            None => "is missing".to_owned(),
        };
        EngineError::Model(format!("{}: field '{name}' {found}, expected {expected}", self.place))
    }

    /// The field's value, where it is there and not null.
    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// Whether the field is there and null, which may mean something else than a field that was left out.
    pub(super) fn is_null(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(Value::is_null)
    }

    pub(super) fn size(&self, name: &str) -> Result<Option<usize>> {
        let read = |value: &Value| value.as_u64().filter(|n| (1..=MAX_SIZE).contains(n)).map(|n| n as usize);
        match self.get(name) {
            None => Ok(None),
            Some(value) => match read(value) {
                Some(size) => Ok(Some(size)),
                None => Err(self.error(name, "a whole number from 1 to 2^24")),
            },
        }
    }

    pub(super) fn required_size(&self, name: &str) -> Result<usize> {
        self.size(name)?.ok_or_else(|| self.error(name, "a whole number from 1 to 2^24"))
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<f64>> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => match value.as_f64().filter(|x| x.is_finite()) {
                Some(number) => Ok(Some(number)),
                None => Err(self.error(name, "a number")),
            },
        }
    }

    pub(super) fn positive(&self, name: &str) -> Result<Option<f64>> {
        match self.number(name)? {
            Some(number) if number <= 0.0 => Err(self.error(name, "a number above 0")),
            other => Ok(other),
        }
    }

    pub(super) fn flag(&self, name: &str, default: bool) -> Result<bool> {
        match self.get(name) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.error(name, "true or false")),
        }
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => Ok(Some(value.as_str().ok_or_else(|| self.error(name, "a string"))?)),
        }
    }

    /// A token id or a list of them.
    pub(super) fn token_ids(&self, name: &str) -> Result<Option<Vec<u32>>> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = match self.get(name) {
            None => return Ok(None),
            Some(Value::Array(list)) => list.iter().map(id).collect(),
            Some(value) => id(value).map(|id| vec![id]),
        };
        ids.map(Some).ok_or_else(|| self.error(name, "a token id or a list of them"))
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A value as it stands in the file, cut where it is long.
fn shorten(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
