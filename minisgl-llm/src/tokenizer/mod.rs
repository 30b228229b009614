//! Text to token ids and back.

mod byte_map;
mod codec;
mod config;
mod detokenizer;
mod table;
mod utf8;

use std::path::Path;
use std::sync::Arc;

use codec::{Codec, HfCodec};
pub(crate) use config::TokenizerConfig;
pub use detokenizer::Detokenizer;
use table::TokenTable;

use crate::error::Result;

/// A model's tokenizer, read from its `tokenizer.json`.
pub struct Tokenizer {
    codec: Box<dyn Codec>,
    special: Vec<bool>,
    /// `None` for decoders that do not work token by token.
    table: Option<TokenTable>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// The file cannot be read, or is not a tokenizer.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        Ok(Self::new(Box::new(HfCodec::from_file(path.as_ref())?)))
    }

    fn new(codec: Box<dyn Codec>) -> Self {
        let mut special = vec![false; codec.num_ids()];
        for id in codec.special_ids() {
            special[id as usize] = true;
        }
        let table = TokenTable::new(codec.as_ref());
        Self { codec, special, table }
    }

    /// Ids of `text`. `add_special_tokens` adds what the model's prompts begin with, as a rule BOS.
    ///
    /// # Errors
    /// The tokenizer's model has no token for some of the text, not even an unknown token.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        self.codec.encode(text, add_special_tokens)
    }

    /// Text of `ids`. Ids without a token contribute nothing, bytes that are not UTF-8 become U+FFFD.
    pub fn decode(self: &Arc<Self>, ids: &[u32], skip_special_tokens: bool) -> String {
        let mut detokenizer = Detokenizer::new(Arc::clone(self), skip_special_tokens);
        let mut text = String::new();
        for &id in ids {
            detokenizer.push(id, &mut text);
        }
        detokenizer.flush(&mut text);
        text
    }

    /// The token of an id as it is in the vocabulary, where there is one.
    pub fn token(&self, id: u32) -> Option<String> {
        self.codec.token(id)
    }

    /// Whether an id is a special token, as BOS or the end of a turn.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    /// One more than the highest id. A model's vocabulary may be larger.
    pub fn num_ids(&self) -> usize {
        self.special.len()
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("num_ids", &self.num_ids()).finish_non_exhaustive()
    }
}
