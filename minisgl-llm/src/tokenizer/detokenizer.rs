use std::sync::Arc;

use super::Tokenizer;
use super::table::Beginning;
use super::utf8::Utf8Stream;

/// Turns tokens into text one by one: what it appends, taken together, is the text of all the tokens.
///
/// A token costs the same however many came before. Text is appended as soon as no later token can change it:
/// never a part of a character.
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    skip_special_tokens: bool,
    state: State,
}

enum State {
    Table { utf8: Utf8Stream, at: Position },
    Window(Window),
}

/// How much of the beginning, which some decoders trim, is still to come.
#[derive(Clone, Copy)]
enum Position {
    Start,
    Spaces(usize),
    Inside,
}

impl Detokenizer {
    /// At the beginning of a text.
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special_tokens: bool) -> Self {
        let state = match &tokenizer.table {
            Some(_) => State::Table { utf8: Utf8Stream::default(), at: Position::Start },
            None => State::Window(Window::default()),
        };
        Self { tokenizer, skip_special_tokens, state }
    }

    /// Takes the next token and appends the text that is certain now.
    pub fn push(&mut self, id: u32, out: &mut String) {
        if self.skip_special_tokens && self.tokenizer.is_special(id) {
            return;
        }
        let (State::Table { utf8, at }, Some(table)) = (&mut self.state, &self.tokenizer.table) else {
            let skip = self.skip_special_tokens;
            // An id without a token must not become the context of the next.
            if let (State::Window(window), Some(_)) = (&mut self.state, self.tokenizer.token(id)) {
                window.push(id, out, |ids| self.tokenizer.codec.decode(ids, skip));
            }
            return;
        };
        let Some(mut bytes) = table.get(id) else { return };
        if let (Position::Start, beginning) = (*at, table.beginning) {
            *at = match beginning {
                Beginning::Keep => Position::Inside,
                Beginning::StripSpaces(count) => Position::Spaces(count),
                Beginning::DropInFirstToken(dropped) => {
                    let token = self.tokenizer.codec.token(id).unwrap_or_default();
                    utf8.push(token.replace(dropped, "").as_bytes(), out);
                    *at = Position::Inside;
                    return;
                }
            };
        }
        while let (Position::Spaces(left), Some((&first, rest))) = (*at, bytes.split_first()) {
            if first != b' ' || left == 0 {
                *at = Position::Inside;
            } else {
                bytes = rest;
                *at = Position::Spaces(left - 1);
            }
        }
        utf8.push(bytes, out);
    }

    /// Appends what was held back: the text has ended.
    pub fn flush(&mut self, out: &mut String) {
        match &mut self.state {
            State::Table { utf8, .. } => utf8.flush(out),
            State::Window(window) => {
                let skip = self.skip_special_tokens;
                window.flush(out, |ids| self.tokenizer.codec.decode(ids, skip));
            }
        }
    }
}

/// For decoders of which only whole texts are known: the text of a short window of tokens with the last one,
/// less the text of the window without it.
#[derive(Default)]
struct Window {
    ids: Vec<u32>,
    /// How many of `ids` have been seen in the output: what comes after them is read in their context.
    num_shown: usize,
}

/// A text that still ends in U+FFFD after this many tokens is truly invalid: no character has more bytes.
const MAX_HELD: usize = 8;

impl Window {
    fn push(&mut self, id: u32, out: &mut String, decode: impl Fn(&[u32]) -> String) {
        self.ids.push(id);
        let shown = decode(&self.ids[..self.num_shown]);
        let text = decode(&self.ids);
        if text == shown {
            self.ids.pop();
            return;
        }
        let num_held = self.ids.len() - self.num_shown;
        if text.ends_with(char::REPLACEMENT_CHARACTER) && num_held < MAX_HELD {
            return;
        }
        out.push_str(text.get(shown.len()..).unwrap_or_default());
        self.ids.drain(..self.num_shown);
        self.num_shown = self.ids.len();
    }

    fn flush(&mut self, out: &mut String, decode: impl Fn(&[u32]) -> String) {
        let shown = decode(&self.ids[..self.num_shown]);
        out.push_str(decode(&self.ids).get(shown.len()..).unwrap_or_default());
        self.ids.clear();
        self.num_shown = 0;
    }
}

#[cfg(test)]
mod tests;
