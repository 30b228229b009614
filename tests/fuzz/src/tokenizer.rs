//! `tokenizer.json`: any bytes give a tokenizer or an error; what it encodes it can decode, token by token.
#![no_main]

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use minisgl_llm::Tokenizer;

static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = std::env::temp_dir().join(format!("minisgl-fuzz-tokenizer-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a temporary directory");
    dir
});

// The reader catches panics of the library below it; without this they would end the run before it can. A panic
// that nobody catches still ends it.
fuzz_target!(init: std::panic::set_hook(Box::new(|_| {})), |data: &[u8]| {
    let path = DIR.join("tokenizer.json");
    std::fs::write(&path, data).expect("a file");
    if let Ok(tokenizer) = Tokenizer::from_file(&path) {
        let tokenizer = Arc::new(tokenizer);
        if let Ok(ids) = tokenizer.encode("ab <|x|> 世界", true) {
            let _ = tokenizer.decode(&ids, false);
        }
        let _ = tokenizer.decode(&[0, 1, 2, u32::MAX], true);
    }
});
