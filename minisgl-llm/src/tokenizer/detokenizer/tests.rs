use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::Tokenizer;
use super::super::codec::HfCodec;
use super::*;

/// A BPE tokenizer whose ids are the indices of `tokens`, then those of `special`.
fn tokenizer(tokens: &[&str], special: &[&str], decoder: Value) -> Arc<Tokenizer> {
    let vocab: serde_json::Map<_, _> =
        tokens.iter().zip(0..).map(|(t, i)| ((*t).to_owned(), json!(i))).collect();
    let added: Vec<_> = special
        .iter()
        .zip(tokens.len()..)
        .map(|(t, id)| {
            json!({"id": id, "content": t, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": decoder,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": true, "vocab": vocab,
                  "merges": []},
    });
    Arc::new(Tokenizer::new(Box::new(HfCodec::from_bytes(file.to_string().as_bytes()).unwrap())))
}

/// The bundled model's: byte-level BPE with five special tokens.
fn byte_level() -> Arc<Tokenizer> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/rust-docs-6m/tokenizer.json");
    Arc::new(Tokenizer::from_file(path).unwrap())
}

const SENTENCE_PIECE: &[&str] = &[
    "▁Hello", "▁", "▁▁", "world", "é", "😀", "a▁b", "<0x20>", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>",
    "<0xC3>", "<0xA9>", "\n", "",
];

fn llama2() -> Arc<Tokenizer> {
    let decoder = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
        {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
    tokenizer(SENTENCE_PIECE, &["<s>", "</s>", "▁<sep>"], decoder)
}

fn gemma() -> Arc<Tokenizer> {
    let decoder = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]});
    tokenizer(SENTENCE_PIECE, &["<bos>"], decoder)
}

fn metaspace() -> Arc<Tokenizer> {
    let decoder = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    tokenizer(SENTENCE_PIECE, &["<s>", "</s>"], decoder)
}

fn word_piece() -> Arc<Tokenizer> {
    let decoder = json!({"type": "WordPiece", "prefix": "##", "cleanup": false});
    tokenizer(&["he", "##llo", "world", "##é", "."], &["[SEP]"], decoder)
}

fn replacement_free(text: &str) -> bool {
    !text.contains(char::REPLACEMENT_CHARACTER)
}

/// Checks the increments of `ids` against the whole, and where it is valid against the library.
fn check(tokenizer: &Arc<Tokenizer>, ids: &[u32], skip: bool) -> Result<(), TestCaseError> {
    let mut detokenizer = Detokenizer::new(Arc::clone(tokenizer), skip);
    let mut text = String::new();
    for (i, &id) in ids.iter().enumerate() {
        detokenizer.push(id, &mut text);
        let so_far = tokenizer.codec.decode(&ids[..=i], skip);
        if replacement_free(&so_far) {
            prop_assert_eq!(&text, &so_far, "after {} tokens nothing is held back", i + 1);
        }
    }
    detokenizer.flush(&mut text);
    prop_assert_eq!(&text, &tokenizer.decode(ids, skip));
    let whole = tokenizer.codec.decode(ids, skip);
    if replacement_free(&whole) {
        prop_assert_eq!(text, whole);
    }
    Ok(())
}

/// Ids of which some have no token.
fn ids(num_ids: usize) -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(0..num_ids as u32 + 3, 0..24)
}

proptest! {
    #[test]
    fn sentence_piece_style_equals_the_library(ids in ids(SENTENCE_PIECE.len() + 3), skip in any::<bool>()) {
        for tokenizer in [llama2(), gemma(), metaspace()] {
            check(&tokenizer, &ids, skip)?;
        }
    }

    #[test]
    fn unknown_decoders_equal_the_library(ids in ids(6), skip in any::<bool>()) {
        check(&word_piece(), &ids, skip)?;
    }
}

#[test]
fn byte_level_equals_the_library() {
    let tokenizer = byte_level();
    let mut runner = proptest::test_runner::TestRunner::default();
    // The first 256 tokens are the bytes: they cut characters anywhere.
    let ids = prop::collection::vec(prop_oneof![0..256u32, 0..4100u32], 0..24);
    runner.run(&(ids, any::<bool>()), |(ids, skip)| check(&tokenizer, &ids, skip)).unwrap();
    let text = "Grüße, 世界! 👩‍👩‍👧 naïve\u{0301} \t\r\n\0 ſ";
    runner
        .run(&proptest::collection::vec(proptest::char::any(), 0..20), |chars| {
            let text: String = text.chars().chain(chars).collect();
            let ids = tokenizer.encode(&text, false).unwrap();
            prop_assert_eq!(tokenizer.decode(&ids, false), text);
            check(&tokenizer, &ids, true)
        })
        .unwrap();
}

#[test]
fn a_character_is_never_split_and_is_flushed_when_cut() {
    let tokenizer = llama2();
    let id = |token: &str| SENTENCE_PIECE.iter().position(|t| *t == token).unwrap() as u32;
    let mut detokenizer = Detokenizer::new(Arc::clone(&tokenizer), true);
    let mut text = String::new();
    for token in ["▁Hello", "<0xF0>", "<0x9F>", "<0x98>"] {
        detokenizer.push(id(token), &mut text);
    }
    assert_eq!(text, "Hello");
    detokenizer.push(id("<0x80>"), &mut text);
    assert_eq!(text, "Hello😀");
    detokenizer.push(id("<0xC3>"), &mut text);
    assert_eq!(text, "Hello😀");
    detokenizer.flush(&mut text);
    assert_eq!(text, "Hello😀\u{fffd}");
}

#[test]
fn tokens_that_are_invalid_for_ever_hold_back_nothing_but_themselves() {
    let tokenizer = llama2();
    let byte = SENTENCE_PIECE.iter().position(|t| *t == "<0x9F>").unwrap() as u32;
    let mut detokenizer = Detokenizer::new(tokenizer, true);
    let mut text = String::new();
    for num in 1..100 {
        detokenizer.push(byte, &mut text);
        assert_eq!(text.chars().count(), num);
    }
}

/// Tokens that decode to nothing are not decoded again with every token that follows.
///
/// Break: `self.ids.pop()` in `Window::push`.
#[test]
fn fault_07_tokens_without_text_cost_the_same() {
    let num_tokens = 10_000;
    let mut window = Window::default();
    let mut text = String::new();
    let num_decoded = std::cell::Cell::new(0);
    for id in 0..num_tokens {
        window.push(id, &mut text, |ids| {
            num_decoded.set(num_decoded.get() + ids.len());
            String::new()
        });
    }
    assert_eq!(text, "");
    // The window with the new token, and the window without it.
    let limit = 2 * (MAX_HELD + 1) * num_tokens as usize;
    assert!(num_decoded.get() <= limit, "{} ids decoded for {num_tokens} tokens", num_decoded.get());
}
