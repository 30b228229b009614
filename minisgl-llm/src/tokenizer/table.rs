//! What each token adds to the text, as bytes, for the decoders that work token by token.

use serde_json::Value;

use super::byte_map::bytes_of;
use super::codec::Codec;

/// Token id to bytes: one lookup a token.
pub(super) struct TokenTable {
    /// `ends[id]` is where the bytes of `id` end and those of `id + 1` begin.
    ends: Vec<u32>,
    bytes: Vec<u8>,
    known: Vec<bool>,
    pub(super) beginning: Beginning,
}

/// What a decoder leaves out at the beginning of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beginning {
    /// Nothing.
    Keep,
    /// Up to this many spaces.
    StripSpaces(usize),
    /// Every occurrence of this character in the first token.
    DropInFirstToken(char),
}

/// How a token becomes bytes.
#[derive(Clone, Debug, PartialEq)]
enum Rule {
    ByteLevel,
    /// Replace in the token, then maybe read `<0xNN>` as a byte.
    Text {
        replace: Vec<(String, String)>,
        byte_fallback: bool,
    },
}

impl TokenTable {
    /// The table for the codec's decoder, or `None` where the text of a token depends on its neighbours in a way
    /// that this file does not know.
    pub(super) fn new(codec: &dyn Codec) -> Option<Self> {
        let (rule, beginning) = parse_decoder(&codec.decoder())?;
        let mut table = Self { ends: Vec::new(), bytes: Vec::new(), known: Vec::new(), beginning };
        for id in 0..codec.num_ids() as u32 {
            let token = codec.token(id);
            table.known.push(token.is_some());
            table.bytes.extend(token.map(|token| rule.apply(&token)).unwrap_or_default());
            table.ends.push(u32::try_from(table.bytes.len()).ok()?);
        }
        Some(table)
    }

    /// The bytes of a token, or `None` for an id without a token.
    pub(super) fn get(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        if !*self.known.get(id)? {
            return None;
        }
        let start = if id == 0 { 0 } else { self.ends[id - 1] as usize };
        Some(&self.bytes[start..self.ends[id] as usize])
    }
}

impl Rule {
    fn apply(&self, token: &str) -> Vec<u8> {
        match self {
            // An added token is written as it is, and may hold characters that stand for no byte, or for bytes
            // that are not UTF-8: then it is itself.
            Rule::ByteLevel => bytes_of(token).unwrap_or_else(|| token.as_bytes().to_vec()),
            Rule::Text { replace, byte_fallback } => {
                let token =
                    replace.iter().fold(token.to_owned(), |token, (from, to)| token.replace(from, to));
                match byte_token(&token) {
                    Some(byte) if *byte_fallback => vec![byte],
                    _ => token.into_bytes(),
                }
            }
        }
    }
}

/// The byte of a token like `<0xE2>`.
fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

fn parse_decoder(decoder: &Value) -> Option<(Rule, Beginning)> {
    let steps = match decoder["type"].as_str()? {
        "Sequence" => decoder["decoders"].as_array()?.as_slice(),
        _ => std::slice::from_ref(decoder),
    };
    if let [only] = steps {
        match only["type"].as_str()? {
            "ByteLevel" => return Some((Rule::ByteLevel, Beginning::Keep)),
            "Metaspace" => return parse_metaspace(only),
            _ => {}
        }
    }
    let mut replace = Vec::new();
    let mut byte_fallback = false;
    let mut fused = false;
    let mut beginning = Beginning::Keep;
    for step in steps {
        match step["type"].as_str()? {
            "Replace" if !byte_fallback && !fused => {
                replace.push((step["pattern"]["String"].as_str()?.into(), step["content"].as_str()?.into()));
            }
            "ByteFallback" if !fused => byte_fallback = true,
            "Fuse" => fused = true,
            "Strip" if fused && beginning == Beginning::Keep => {
                if step["content"].as_str()? != " " || step["stop"].as_u64()? != 0 {
                    return None;
                }
                beginning = Beginning::StripSpaces(usize::try_from(step["start"].as_u64()?).ok()?);
            }
            _ => return None,
        }
    }
    // Without Replace, ByteFallback or Fuse, tokens are joined by spaces or in a way of their own.
    let per_token = !replace.is_empty() || byte_fallback || fused;
    per_token.then_some((Rule::Text { replace, byte_fallback }, beginning))
}

fn parse_metaspace(step: &Value) -> Option<(Rule, Beginning)> {
    let replacement = step["replacement"].as_str()?;
    let prepended = match step["prepend_scheme"].as_str() {
        Some(scheme) => scheme != "never",
        None => step["add_prefix_space"].as_bool().unwrap_or(true),
    };
    let rule = Rule::Text { replace: vec![(replacement.into(), " ".into())], byte_fallback: false };
    let beginning = match prepended {
        true => Beginning::DropInFirstToken(replacement.chars().next()?),
        false => Beginning::Keep,
    };
    Some((rule, beginning))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn byte_tokens() {
        assert_eq!(byte_token("<0xE2>"), Some(0xe2));
        assert_eq!(byte_token("<0x0A>"), Some(b'\n'));
        for token in ["<0xE>", "<0xE2", "0xE2", "<0xGG>", "<0x+1>x", "<0xE22>"] {
            assert_eq!(byte_token(token), None, "{token}");
        }
    }

    #[test]
    fn decoders_that_depend_on_neighbours_are_left_to_the_library() {
        for decoder in [
            json!(null),
            json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
            json!({"type": "BPEDecoder", "suffix": "</w>"}),
            json!({"type": "Sequence", "decoders": [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]}),
            json!({"type": "Sequence", "decoders": [
                {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 0, "stop": 1}]}),
            json!({"type": "Replace", "pattern": {"Regex": "x+"}, "content": " "}),
        ] {
            assert_eq!(parse_decoder(&decoder), None, "{decoder}");
        }
    }
}
