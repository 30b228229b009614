//! A safetensors file: any bytes give tensors that lie within the file, or an error.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use minisgl_engine::model::Checkpoint;

static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = std::env::temp_dir().join(format!("minisgl-fuzz-safetensors-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a temporary directory");
    dir
});

fuzz_target!(|data: &[u8]| {
    std::fs::write(DIR.join("model.safetensors"), data).expect("a file");
    if let Ok(checkpoint) = Checkpoint::open(&DIR) {
        assert!(checkpoint.size_bytes() <= data.len());
        let _ = (checkpoint.names().count(), checkpoint.dtype());
    }
});
