use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};

/// What this crate needs of a tokenizer library.
pub(crate) trait Codec: Send + Sync {
    /// Ids of `text`; `add_special_tokens` adds what the post-processor adds, as a rule BOS.
    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>>;
    /// The library's own decoding. Empty where it fails.
    fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> String;
    /// The token as it is in the vocabulary.
    fn token(&self, id: u32) -> Option<String>;
    /// The ids of special tokens.
    fn special_ids(&self) -> Vec<u32>;
    /// One more than the highest id.
    fn num_ids(&self) -> usize;
    /// The `decoder` of `tokenizer.json`.
    fn decoder(&self) -> Value;
}

/// Tables are indexed by id: an absurd one must not take all memory.
const MAX_ID: u32 = 1 << 24;

/// The `tokenizers` crate.
pub(crate) struct HfCodec {
    inner: tokenizers::Tokenizer,
}

impl HfCodec {
    /// Reads `tokenizer.json`. Its truncation and padding are switched off: a prompt is never changed silently.
    pub(crate) fn from_file(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::file("read", path))?;
        Self::from_bytes(&bytes).map_err(|why| {
            Error::Tokenizer(format!("{} is not a tokenizer that can be used: {why}", path.display()))
        })
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> std::result::Result<Self, String> {
        // The library panics where JSON breaks off inside of a component: look at the syntax first, and catch what
        // else it panics at.
        serde_json::from_slice::<serde::de::IgnoredAny>(bytes).map_err(|e| e.to_string())?;
        let mut inner = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(bytes))
            .map_err(|_| "a part of it is malformed".to_owned())?
            .map_err(|e| e.to_string())?;
        if let Some(id) = inner.get_vocab(true).into_values().find(|&id| id > MAX_ID) {
            return Err(format!("token id {id} is above {MAX_ID}"));
        }
        inner.with_truncation(None).map_err(|e| e.to_string())?;
        inner.with_padding(None);
        Ok(Self { inner })
    }
}

impl Codec for HfCodec {
    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        self.inner
            .encode_fast(text, add_special_tokens)
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|e| Error::Tokenizer(format!("the text cannot be encoded: {e}")))
    }

    fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> String {
        self.inner.decode(ids, skip_special_tokens).unwrap_or_default()
    }

    fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    fn special_ids(&self) -> Vec<u32> {
        self.inner.get_added_tokens_decoder().iter().filter(|(_, t)| t.special).map(|(&id, _)| id).collect()
    }

    fn num_ids(&self) -> usize {
        self.inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1)
    }

    fn decoder(&self) -> Value {
        self.inner.get_decoder().and_then(|d| serde_json::to_value(d).ok()).unwrap_or(Value::Null)
    }
}
