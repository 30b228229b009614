//! What was measured about linear layers, kept on disk between runs.
//!
//! A text file for each GPU, driver, library and set of kernels: a first line that names them, then a line for each
//! measurement. It is a cache: a file that cannot be read or written costs a warning, and the measurements again.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::{env, fs, io, process};

use super::Shape;
use super::skinny::{Key, Variant};

/// Which of our own kernels computes a product, if any.
type Choices = HashMap<Key, Option<Variant>>;
/// The place of cuBLASLt's fastest algorithm in its list.
type Algorithms = HashMap<Shape, usize>;

/// In the first line; changes with the format.
const TITLE: &str = "mini-sgl linear layers 2";

/// Measurements for one GPU, driver, library and set of kernels.
pub(super) struct Cache {
    /// None where nothing can be kept.
    path: Option<PathBuf>,
    title: String,
    /// Which own kernel was the fastest, or none.
    choices: Choices,
    /// Which of cuBLASLt's guesses was the fastest.
    algorithms: Algorithms,
}

impl Cache {
    /// The cache in the user's cache folder for what `key` names.
    pub(super) fn open(key: &str) -> Self {
        let folder = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
        let home = || env::var_os("HOME").filter(|home| !home.is_empty());
        let folder = folder.or_else(|| home().map(|home| Path::new(&home).join(".cache")));
        Self::load(folder.map(|folder| folder.join("mini-sgl").join(file_name(key))), key)
    }

    fn load(path: Option<PathBuf>, key: &str) -> Self {
        let title = format!("{TITLE}: {key}");
        let mut cache = Self { path, title, choices: HashMap::new(), algorithms: HashMap::new() };
        let Some(path) = &cache.path else { return cache };
        let read = match fs::read_to_string(path) {
            Ok(text) => cache.parse(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return cache,
            Err(error) => Err(error.to_string()),
        };
        match read {
            Ok((choices, algorithms)) => (cache.choices, cache.algorithms) = (choices, algorithms),
            Err(why) => tracing::warn!("{}: {why}; measuring linear layers again", path.display()),
        }
        cache
    }

    /// Which own kernel was the fastest, or none, where that is known.
    pub(super) fn choice(&self, key: &Key) -> Option<Option<Variant>> {
        self.choices.get(key).copied()
    }

    /// Which of cuBLASLt's guesses was the fastest, where that is known.
    pub(super) fn algorithm(&self, shape: &Shape) -> Option<usize> {
        self.algorithms.get(shape).copied()
    }

    pub(super) fn set_choice(&mut self, key: Key, choice: Option<Variant>) {
        self.try_choice(key, choice);
        self.save();
    }

    /// For a while: what is written meanwhile is written again.
    pub(super) fn try_choice(&mut self, key: Key, choice: Option<Variant>) {
        self.choices.insert(key, choice);
    }

    pub(super) fn set_algorithm(&mut self, shape: Shape, idx: usize) {
        self.algorithms.insert(shape, idx);
        self.save();
    }

    /// Writes the whole file, which takes less time than the measurement before it.
    fn save(&mut self) {
        let Some(path) = &self.path else { return };
        // Another process may do the same: each writes a file of its own, and the last one stays.
        let temporary = path.with_extension(process::id().to_string());
        let folder = path.parent().unwrap_or(Path::new("."));
        let written = fs::create_dir_all(folder)
            .and_then(|()| fs::write(&temporary, self.text()))
            .and_then(|()| fs::rename(&temporary, path));
        if let Err(error) = written {
            tracing::warn!("{}: {error}; measurements of linear layers are not kept", path.display());
            self.path = None;
        }
    }

    fn text(&self) -> String {
        let choices = self.choices.iter().map(|(key, choice)| {
            let flags = flags(&key.shape, key.has_norm, key.is_gated);
            let choice = choice.map_or_else(|| "other".into(), |variant| variant.0.to_string());
            format!("choice {} {flags} {choice}", sizes(&key.shape))
        });
        let algorithms = self
            .algorithms
            .iter()
            .map(|(shape, idx)| format!("algorithm {} {} {idx}", sizes(shape), flags(shape, false, false)));
        let mut lines: Vec<_> = choices.chain(algorithms).collect();
        lines.sort();
        format!("{}\n{}\n", self.title, lines.join("\n"))
    }

    /// All or nothing: a file with one wrong line is not to be trusted.
    fn parse(&self, text: &str) -> Result<(Choices, Algorithms), String> {
        let mut lines = text.lines();
        let title = lines.next().unwrap_or_default();
        if title != self.title {
            return Err(format!("expected '{}' in the first line, found '{title}'", self.title));
        }
        let (mut choices, mut algorithms) = (HashMap::new(), HashMap::new());
        for line in lines.filter(|line| !line.is_empty()) {
            let understood = parse_line(line).map(|(kind, key, value)| match (kind, value) {
                ("choice", "other") => choices.insert(key, None).is_none(),
                ("choice", variant) => match variant.parse() {
                    Ok(variant) => choices.insert(key, Some(Variant(variant))).is_none(),
                    Err(_) => false,
                },
                ("algorithm", idx) => match idx.parse() {
                    Ok(idx) => algorithms.insert(key.shape, idx).is_none(),
                    Err(_) => false,
                },
                _ => false,
            });
            if understood != Some(true) {
                return Err(format!("cannot understand the line '{line}'"));
            }
        }
        Ok((choices, algorithms))
    }
}

/// Distinct for distinct keys, and safe in a path.
fn file_name(key: &str) -> String {
    let slug = key.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' });
    format!("linear-{}.txt", slug.collect::<String>().replace("--", "-").to_lowercase())
}

fn sizes(shape: &Shape) -> String {
    let Shape { rows, n, k, dtype, out_dtype, .. } = shape;
    format!("{rows} {n} {k} {dtype} {out_dtype}")
}

fn flags(shape: &Shape, has_norm: bool, is_gated: bool) -> String {
    let all = [(shape.has_bias, "bias"), (shape.adds, "adds"), (has_norm, "norm"), (is_gated, "gated")];
    let set: Vec<_> = all.into_iter().filter(|(is_set, _)| *is_set).map(|(_, name)| name).collect();
    if set.is_empty() { "plain".into() } else { set.join(",") }
}

/// Kind, key and value of a line.
fn parse_line(line: &str) -> Option<(&str, Key, &str)> {
    let fields: Vec<&str> = line.split(' ').collect();
    let &[kind, rows, n, k, dtype, out_dtype, flags, value] = fields.as_slice() else { return None };
    let mut key = Key {
        shape: Shape {
            rows: rows.parse().ok()?,
            n: n.parse().ok()?,
            k: k.parse().ok()?,
            dtype: dtype.parse().ok()?,
            out_dtype: out_dtype.parse().ok()?,
            has_bias: false,
            adds: false,
        },
        has_norm: false,
        is_gated: false,
    };
    for flag in flags.split(',').filter(|flag| *flag != "plain") {
        match flag {
            "bias" => key.shape.has_bias = true,
            "adds" => key.shape.adds = true,
            "norm" => key.has_norm = true,
            "gated" => key.is_gated = true,
            _ => return None,
        }
    }
    Some((kind, key, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    const KEY: &str = "NVIDIA H100 80GB HBM3, driver 13000, cuBLASLt 130000, kernels 0123456789abcdef";

    fn shape(rows: usize, adds: bool) -> Shape {
        Shape { rows, n: 48, k: 64, dtype: DType::BF16, out_dtype: DType::F32, has_bias: true, adds }
    }

    fn folder(name: &str) -> PathBuf {
        let folder = env::temp_dir().join(format!("minisgl-cache-{}-{name}", process::id()));
        let _ = fs::remove_dir_all(&folder);
        folder
    }

    #[test]
    fn what_was_measured_is_there_again() {
        let folder = folder("round-trip");
        let path = folder.join("new").join(file_name(KEY));
        let mut cache = Cache::load(Some(path.clone()), KEY);
        let keys = [
            Key { shape: shape(1, false), has_norm: true, is_gated: false },
            Key { shape: shape(1, false), has_norm: true, is_gated: true },
            Key { shape: shape(64, true), has_norm: false, is_gated: false },
        ];
        for (i, key) in keys.into_iter().enumerate() {
            assert_eq!(cache.choice(&key), None);
            cache.set_choice(key, (i == 1).then_some(Variant(3)));
        }
        cache.set_algorithm(shape(64, true), 3);
        let cache = Cache::load(Some(path), KEY);
        for (i, key) in keys.iter().enumerate() {
            assert_eq!(cache.choice(key), Some((i == 1).then_some(Variant(3))), "{key:?}");
        }
        assert_eq!(cache.algorithm(&shape(64, true)), Some(3));
        assert_eq!(cache.algorithm(&shape(64, false)), None);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_broken_file_is_ignored_and_replaced() {
        let folder = folder("broken");
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("cache.txt");
        let key = Key { shape: shape(1, false), has_norm: false, is_gated: false };
        let good = format!("{TITLE}: {KEY}\nchoice 1 48 64 bf16 f32 bias 7\n");
        let broken = [
            String::new(),
            good.replace("H100", "H200"),
            good.replace(" bias", ""),
            good.replace(" 7", " fat"),
            good.replace(" 7", " -7"),
            good.replace("bf16", "bf17"),
            good.replace("choice 1", "choice -1"),
            format!("{good}choice 1 48 64 bf16 f32 bias other\n"),
            format!("{good}algorithm 1 48 64 bf16 f32 plain many\n"),
            "\u{fffd}".repeat(1000),
        ];
        for text in broken {
            fs::write(&path, &text).unwrap();
            assert_eq!(Cache::load(Some(path.clone()), KEY).choice(&key), None, "{text}");
        }
        fs::write(&path, [0xff, 0xfe, 0]).unwrap();
        let mut cache = Cache::load(Some(path.clone()), KEY);
        cache.set_choice(key, Some(Variant(7)));
        assert_eq!(fs::read_to_string(&path).unwrap(), good);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_place_that_cannot_be_written_is_no_error() {
        let folder = folder("unwritable");
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("file");
        fs::write(&file, "not a folder").unwrap();
        let mut cache = Cache::load(Some(file.join("cache.txt")), KEY);
        let key = Key { shape: shape(2, false), has_norm: false, is_gated: false };
        cache.set_choice(key, None);
        assert_eq!(cache.choice(&key), Some(None));
        assert_eq!(cache.path, None);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn file_names_tell_keys_apart() {
        let name = file_name(KEY);
        let expected =
            "linear-nvidia-h100-80gb-hbm3-driver-13000-cublaslt-130000-kernels-0123456789abcdef.txt";
        assert_eq!(name, expected);
        assert_ne!(file_name(&KEY.replace("13000,", "13010,")), name);
    }
}
