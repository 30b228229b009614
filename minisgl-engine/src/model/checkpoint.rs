//! The tensors of a model directory: one safetensors file, or several behind an index, mapped into memory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use minisgl_kernels::{DType, MappedFile};
use safetensors::{Dtype, SafeTensors};

use super::fields::{Fields, read_json};
use crate::{EngineError, Result};

/// The mapped files of a model directory and where each tensor lies in them.
#[derive(Debug)]
pub struct Checkpoint {
    files: Vec<(PathBuf, MappedFile)>,
    tensors: BTreeMap<String, TensorEntry>,
}

/// One tensor of a checkpoint.
#[derive(Clone, Debug)]
pub struct TensorEntry {
    /// Which file.
    file: usize,
    /// Element type as the file names it.
    dtype: Dtype,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Bytes within the file.
    range: std::ops::Range<usize>,
}

impl Checkpoint {
    /// Maps the tensors in `dir`: those of `model.safetensors.index.json` if it is there, else of
    /// `model.safetensors`.
    ///
    /// # Errors
    /// Names the file that is missing, truncated or malformed.
    pub fn open(dir: &Path) -> Result<Self> {
        let index = dir.join("model.safetensors.index.json");
        let single = dir.join("model.safetensors");
        if single.is_file() {
            return Self::map(&[single], None);
        }
        if !index.is_file() {
            return Err(EngineError::Model(format!(
                "{} holds neither model.safetensors nor model.safetensors.index.json; weights in other formats \
                 must be converted first",
                dir.display()
            )));
        }
        let value = read_json(&index)?;
        let place = index.display().to_string();
        let fields = Fields::of(&place, &value)?;
        let map = fields.get("weight_map").ok_or_else(|| fields.error("weight_map", "an object"))?;
        let place = format!("{place}: weight_map");
        let map = Fields::of(&place, map)?;
        let mut names = BTreeSet::new();
        for tensor in map.map.keys() {
            let name = map.text(tensor)?.ok_or_else(|| map.error(tensor, "a file name"))?;
            // A name with a folder in it could lead out of the model directory.
            if name.contains(['/', '\\']) {
                return Err(map.error(tensor, "a file name without a folder"));
            }
            names.insert(name);
        }
        let paths: Vec<_> = names.iter().map(|name| dir.join(name)).collect();
        if let Some(path) = paths.iter().find(|path| !path.is_file()) {
            return Err(EngineError::Model(format!(
                "{} is missing; {} lists it as one of {} files",
                path.display(),
                index.display(),
                paths.len()
            )));
        }
        Self::map(&paths, Some(&map))
    }

    fn map(paths: &[PathBuf], index: Option<&Fields<'_>>) -> Result<Self> {
        let mut files = Vec::new();
        let mut tensors = BTreeMap::new();
        for (file, path) in paths.iter().enumerate() {
            let fail = |why: String| EngineError::Model(format!("{}: {why}", path.display()));
            let mapped =
                MappedFile::open(path).map_err(|error| fail(format!("cannot be mapped: {error}")))?;
            let (header_bytes, metadata) = SafeTensors::read_metadata(&mapped)
                .map_err(|error| fail(format!("not a whole safetensors file: {error}")))?;
            // Eight bytes hold the header's length; tensors are placed relative to the header's end.
            let base = 8 + header_bytes;
            for (name, info) in metadata.tensors() {
                let range = base + info.data_offsets.0..base + info.data_offsets.1;
                if range.end > mapped.len() {
                    let why = format!(
                        "truncated: tensor {name} ends at byte {}, the file has {}",
                        range.end,
                        mapped.len()
                    );
                    return Err(fail(why));
                }
                let entry = TensorEntry { file, dtype: info.dtype, shape: info.shape.clone(), range };
                if tensors.insert(name.clone(), entry).is_some() {
                    return Err(fail(format!("tensor {name} is in another file too")));
                }
            }
            files.push((path.clone(), mapped));
        }
        if let Some(index) = index
            && let Some(name) = index.map.keys().find(|name| !tensors.contains_key(*name))
        {
            return Err(EngineError::Model(format!("{}: no file holds tensor {name}", index.place)));
        }
        Ok(Self { files, tensors })
    }

    /// Every tensor's name.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Bytes of all tensors.
    pub fn size_bytes(&self) -> usize {
        self.tensors.values().map(|entry| entry.range.len()).sum()
    }

    /// Dtype of the first tensor of floats, for checkpoints whose configuration does not say.
    pub fn dtype(&self) -> Option<DType> {
        self.tensors.values().find_map(|entry| float_dtype(entry.dtype))
    }

    /// A tensor's bytes and dtype, checked to have `shape`.
    pub(super) fn tensor(&self, name: &str, shape: &[usize]) -> Result<(&[u8], DType)> {
        let entry = self.tensors.get(name).ok_or_else(|| {
            let files: Vec<_> = self.files.iter().map(|(path, _)| path.display().to_string()).collect();
            EngineError::Model(format!("tensor {name} is missing from {}", files.join(", ")))
        })?;
        let (path, mapped) = &self.files[entry.file];
        if entry.shape != shape {
            return Err(EngineError::Model(format!(
                "{}: tensor {name} has shape {:?}, config.json asks for {shape:?}",
                path.display(),
                entry.shape
            )));
        }
        let dtype = float_dtype(entry.dtype).ok_or_else(|| {
            EngineError::Model(format!(
                "{}: tensor {name} has dtype {:?}, expected BF16, F16 or F32",
                path.display(),
                entry.dtype
            ))
        })?;
        Ok((&mapped[entry.range.clone()], dtype))
    }
}

fn float_dtype(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::BF16 => Some(DType::BF16),
        Dtype::F16 => Some(DType::F16),
        Dtype::F32 => Some(DType::F32),
        _ => None,
    }
}
