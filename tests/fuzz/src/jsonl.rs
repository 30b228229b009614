//! One line of `minisgl generate --input`: any text gives a request or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use minisgl_llm::SamplingParams;

#[path = "../../../minisgl-llm/src/bin/minisgl/jsonl.rs"]
#[allow(dead_code)]
mod jsonl;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for line in text.lines() {
        if let Ok(line) = jsonl::Line::parse(line) {
            let _ = line.into_request(&SamplingParams::default());
        }
    }
});
