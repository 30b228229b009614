//! `minisgl info`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use minisgl_engine::model::{Checkpoint, ModelSpec};
use minisgl_llm::{DType, LLM, Tokenizer};

use crate::args::InfoArgs;
use crate::error::Result;

pub(crate) fn run(args: InfoArgs) -> Result<()> {
    let mut text = String::new();
    let available_bytes = machine(&mut text);
    if let Some(model) = &args.model {
        // The weights' headers are read where they are here; a model that is fetched is fetched without them.
        let dir = LLM::builder(model).use_dummy_weight(true).model_dir()?;
        self::model(&mut text, &dir, &args, available_bytes)?;
    }
    Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
}

/// One `name  value` line; writing to a string cannot fail.
fn line(text: &mut String, name: &str, value: impl std::fmt::Display) {
    let _ = writeln!(text, "  {name:<18}{value}");
}

fn heading(text: &mut String, name: &str) {
    let _ = writeln!(text, "{}{name}", if text.is_empty() { "" } else { "\n" });
}

fn size(bytes: usize) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// Describes the machine; returns the bytes of memory that are free, where the system says so.
fn machine(text: &mut String) -> Option<usize> {
    heading(text, "Machine");
    let field = |file: &str, name: &str| {
        let content = std::fs::read_to_string(file).ok()?;
        let line = content.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let memory = |name| -> Option<usize> {
        let kib: usize = field("/proc/meminfo", name)?.split(' ').next()?.parse().ok()?;
        Some(kib << 10)
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let name = field("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.into());
    line(text, "cpu", format!("{name}, {threads} threads"));
    line(text, "cpu features", cpu_features());
    let available = memory("MemAvailable");
    if let (Some(total), Some(available)) = (memory("MemTotal"), available) {
        line(text, "memory", format!("{}, {} available", size(total), size(available)));
    }
    line(text, "gpus", gpus());
    available
}

#[cfg(target_arch = "x86_64")]
fn cpu_features() -> String {
    let all = [
        ("AVX2", is_x86_feature_detected!("avx2")),
        ("FMA", is_x86_feature_detected!("fma")),
        ("F16C", is_x86_feature_detected!("f16c")),
        ("AVX-512F", is_x86_feature_detected!("avx512f")),
        ("AVX-512BW", is_x86_feature_detected!("avx512bw")),
        ("AVX-512VL", is_x86_feature_detected!("avx512vl")),
        ("AVX-512-BF16", is_x86_feature_detected!("avx512bf16")),
    ];
    let found: Vec<_> = all.iter().filter(|(_, has)| *has).map(|(name, _)| *name).collect();
    if found.is_empty() {
        "none that the kernels use: the portable code runs".into()
    } else {
        found.join(" ")
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_features() -> String {
    "none that the kernels use: the portable code runs".into()
}

/// The GPUs that the driver lists, and whether this program can use them.
fn gpus() -> String {
    let directories = std::fs::read_dir("/proc/driver/nvidia/gpus").into_iter().flatten().flatten();
    let mut names: Vec<String> = directories
        .filter_map(|dir| std::fs::read_to_string(dir.path().join("information")).ok())
        .filter_map(|text| Some(text.lines().find_map(|line| line.strip_prefix("Model:"))?.trim().to_owned()))
        .collect();
    names.sort();
    let built = match cfg!(feature = "cuda") {
        true => "this program was built with CUDA",
        false => "this program was built without CUDA",
    };
    if names.is_empty() { format!("none; {built}") } else { format!("{}; {built}", names.join(", ")) }
}

fn model(text: &mut String, dir: &Path, args: &InfoArgs, available_bytes: Option<usize>) -> Result<()> {
    let spec = ModelSpec::read(dir).map_err(minisgl_llm::Error::from)?;
    heading(text, &format!("Model {}", dir.display()));
    line(text, "architecture", &spec.architecture);
    let heads = format!(
        "{} layers, hidden {}, {} query and {} KV heads of {}, ffn {}",
        spec.num_layers, spec.hidden, spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.ffn
    );
    line(text, "decoder", heads);
    let tied = if spec.tied { ", output tied to it" } else { "" };
    line(text, "vocabulary", format!("{} tokens{tied}", spec.vocab));
    line(text, "longest sequence", format!("{} tokens", spec.max_position));
    line(text, "eos ids", list(&spec.eos_token_ids));
    line(text, "tokenizer", tokenizer(dir)?);
    line(text, "chat template", if has_chat_template(dir) { "yes" } else { "no" });

    heading(text, "Memory");
    let weights =
        dir.join("model.safetensors").is_file() || dir.join("model.safetensors.index.json").is_file();
    let checkpoint = weights.then(|| Checkpoint::open(dir)).transpose().map_err(minisgl_llm::Error::from)?;
    let checkpoint_dtype = spec.dtype.or_else(|| checkpoint.as_ref()?.dtype());
    let dtype = args.dtype.0.or(checkpoint_dtype).unwrap_or(DType::BF16);
    let mut weight_bytes = num_weights(&spec) * dtype.size_bytes();
    match (&checkpoint, checkpoint_dtype) {
        (Some(checkpoint), Some(stored)) => {
            let files = checkpoint.size_bytes();
            let num_tensors = checkpoint.names().count();
            line(text, "weight files", format!("{} in {num_tensors} tensors, {stored}", size(files)));
            weight_bytes = files / stored.size_bytes() * dtype.size_bytes();
        }
        _ => line(text, "weight files", "none here; sizes below follow from config.json"),
    }
    line(text, "weights", format!("{} in {dtype}", size(weight_bytes)));
    let kv_bytes = 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * dtype.size_bytes();
    let page_bytes = kv_bytes * args.page_size;
    line(
        text,
        "KV cache",
        format!("{} a token, {} a page of {} tokens", size(kv_bytes), size(page_bytes), args.page_size),
    );
    let sequence = format!("{} for one of {} tokens", size(kv_bytes * spec.max_position), spec.max_position);
    line(text, "longest sequence", sequence);
    if let Some(available) = available_bytes {
        // What the CPU backend takes by default, less the weights; workspaces come on top.
        let pages = (available / 2).saturating_sub(weight_bytes) / page_bytes.max(1);
        let fits =
            format!("about {pages} pages, {} tokens in half of the available memory", pages * args.page_size);
        line(text, "KV on the CPU", fits);
    }
    Ok(())
}

/// Parameters of the linear layers, the embedding and the norms.
fn num_weights(spec: &ModelSpec) -> usize {
    let (q, kv) = (spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim);
    let attention = spec.hidden * (q + 2 * kv) + q * spec.hidden;
    let layer = attention + 3 * spec.hidden * spec.ffn + 2 * spec.hidden;
    let embeddings = if spec.tied { 1 } else { 2 } * spec.vocab * spec.hidden;
    spec.num_layers * layer + embeddings + spec.hidden
}

fn list(ids: &[u32]) -> String {
    let ids: Vec<_> = ids.iter().map(u32::to_string).collect();
    if ids.is_empty() { "none".into() } else { ids.join(", ") }
}

fn has_chat_template(dir: &Path) -> bool {
    let in_config = || {
        let text = std::fs::read(dir.join("tokenizer_config.json")).ok()?;
        let config: serde_json::Value = serde_json::from_slice(&text).ok()?;
        Some(!config["chat_template"].is_null())
    };
    let files = ["chat_template.jinja", "chat_template.json"];
    files.iter().any(|name| dir.join(name).is_file()) || in_config().unwrap_or(false)
}

fn tokenizer(dir: &Path) -> Result<String> {
    let path = dir.join("tokenizer.json");
    if !path.is_file() {
        return Ok("none: only token ids can be used as prompts".into());
    }
    let tokenizer = Tokenizer::from_file(path)?;
    let num_special = (0..tokenizer.num_ids() as u32).filter(|&id| tokenizer.is_special(id)).count();
    Ok(format!("{} ids, {num_special} of them special tokens", tokenizer.num_ids()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(5 << 40), "5.0 TiB");
    }

    #[test]
    fn weights_of_the_bundled_model_follow_from_its_configuration() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/rust-docs-6m");
        let spec = ModelSpec::read(&dir).unwrap();
        assert_eq!(num_weights(&spec) * 2, Checkpoint::open(&dir).unwrap().size_bytes());
    }
}
