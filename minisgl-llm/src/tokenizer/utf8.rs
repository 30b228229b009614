/// Turns bytes that arrive in pieces into text, as `String::from_utf8_lossy` would the whole.
#[derive(Debug, Default)]
pub(super) struct Utf8Stream {
    /// The beginning of a character: at most three bytes.
    pending: Vec<u8>,
}

impl Utf8Stream {
    /// Appends to `out` what `bytes` completes.
    pub(super) fn push(&mut self, bytes: &[u8], out: &mut String) {
        if self.pending.is_empty() {
            let rest = decode(bytes, out);
            self.pending.extend_from_slice(rest);
        } else {
            self.pending.extend_from_slice(bytes);
            let joined = std::mem::take(&mut self.pending);
            let rest = decode(&joined, out);
            self.pending.extend_from_slice(rest);
        }
    }

    /// Appends U+FFFD where the bytes ended inside a character.
    pub(super) fn flush(&mut self, out: &mut String) {
        if !self.pending.is_empty() {
            out.push(char::REPLACEMENT_CHARACTER);
            self.pending.clear();
        }
    }
}

/// Appends the characters of `bytes`, U+FFFD for what is invalid; returns an incomplete character at the end.
fn decode<'a>(mut bytes: &'a [u8], out: &mut String) -> &'a [u8] {
    loop {
        match std::str::from_utf8(bytes) {
            Ok(text) => {
                out.push_str(text);
                return &[];
            }
            Err(error) => {
                let (valid, rest) = bytes.split_at(error.valid_up_to());
                out.push_str(std::str::from_utf8(valid).unwrap_or_default());
                match error.error_len() {
                    None => return rest,
                    Some(len) => {
                        out.push(char::REPLACEMENT_CHARACTER);
                        bytes = &rest[len..];
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes in which lead and continuation bytes meet often.
    fn bytes() -> impl Strategy<Value = u8> {
        prop_oneof![any::<u8>(), prop::sample::select(vec![0xf0, 0x9f, 0x98, 0x80, 0xc3, 0xa9, b'a'])]
    }

    proptest! {
        #[test]
        fn equals_from_utf8_lossy_however_it_is_cut(
            pieces in prop::collection::vec(prop::collection::vec(bytes(), 0..5), 0..12),
        ) {
            let mut stream = Utf8Stream::default();
            let mut text = String::new();
            for piece in &pieces {
                stream.push(piece, &mut text);
                prop_assert!(stream.pending.len() <= 3);
            }
            stream.flush(&mut text);
            let whole = pieces.concat();
            prop_assert_eq!(text, String::from_utf8_lossy(&whole));
        }
    }
}
