//! `config.json` and `generation_config.json`: any bytes give a model's sizes or an error, and the sizes can be
//! multiplied.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use minisgl_engine::DType;
use minisgl_engine::model::ModelSpec;

static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = std::env::temp_dir().join(format!("minisgl-fuzz-config-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a temporary directory");
    dir
});

fuzz_target!(|data: &[u8]| {
    // A zero byte, which JSON cannot hold, parts the two files.
    let (config, generation) = match data.iter().position(|&byte| byte == 0) {
        Some(end) => (&data[..end], &data[end + 1..]),
        None => (data, &b"{}"[..]),
    };
    std::fs::write(DIR.join("config.json"), config).expect("a file");
    std::fs::write(DIR.join("generation_config.json"), generation).expect("a file");
    if let Ok(spec) = ModelSpec::read(&DIR) {
        let _ = (spec.weight_bytes(DType::F32), spec.kv_bytes_per_token(DType::F32));
        if spec.head_dim <= 256 {
            let _ = spec.rope.table(spec.head_dim, 4);
        }
    }
});
