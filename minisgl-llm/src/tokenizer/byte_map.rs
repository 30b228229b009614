//! The printable stand-ins for bytes in byte-level BPE vocabularies (Radford et al. 2019, `bytes_to_unicode` of
//! GPT-2): printable Latin-1 characters stand for themselves, the other 68 bytes for U+0100 and up, in order.

/// The byte that a character stands for.
pub(super) fn byte_of(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(code as u8),
        code @ 0x100..=0x143 => Some(match code - 0x100 {
            i @ 0..=0x20 => i as u8,
            i @ 0x21..=0x42 => (i - 0x21 + 0x7f) as u8,
            _ => 0xad,
        }),
        _ => None,
    }
}

/// The bytes of a token, or `None` where a character of it stands for no byte.
pub(super) fn bytes_of(token: &str) -> Option<Vec<u8>> {
    token.chars().map(byte_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_a_bijection() {
        let mut bytes: Vec<u8> = (0..0x200).filter_map(char::from_u32).filter_map(byte_of).collect();
        assert_eq!(bytes.len(), 256);
        bytes.sort_unstable();
        assert!(bytes.iter().enumerate().all(|(i, &b)| i == usize::from(b)));
    }

    #[test]
    fn known_stand_ins() {
        assert_eq!(bytes_of("Ġworld"), Some(b" world".to_vec()));
        assert_eq!(bytes_of("ĊĊ"), Some(b"\n\n".to_vec()));
        assert_eq!(bytes_of("\u{143}"), Some(vec![0xad]));
        assert_eq!(bytes_of("<｜end｜>"), None);
    }
}
