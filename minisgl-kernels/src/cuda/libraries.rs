//! Finding cuBLASLt at run time.
//!
//! cudarc opens `libcublasLt.so.13` by name, and panics where the loader does not know it. A library that was
//! opened by path before answers to its name afterwards, so the other places it may be in are tried here.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use libloading::os::unix::Library;

const SONAME: &str = "libcublasLt.so.13";
/// Names the library, or the folder it is in.
const VARIABLE: &str = "MINISGL_CUBLASLT";

/// Makes cuBLASLt loadable, or says where it was looked for.
pub(crate) fn load_cublaslt() -> Result<(), String> {
    let tried = candidates();
    for path in &tried {
        // SAFETY: opening the library runs its constructors, which is what linking to it would do.
        if let Ok(library) = unsafe { Library::new(path) } {
            // Never closed: it stays loaded for cudarc, which keeps its own handle for good.
            std::mem::forget(library);
            // SAFETY: as above.
            if unsafe { cudarc::cublaslt::sys::is_culib_present() } {
                return Ok(());
            }
        }
    }
    let tried: Vec<_> = tried.iter().map(|p| p.display().to_string()).collect();
    Err(format!(
        "cuBLASLt ({SONAME}) cannot be loaded: tried {}; install the CUDA 13 libraries (or `pip install \
         nvidia-cublas`), or set {VARIABLE} to the file",
        tried.join(", ")
    ))
}

fn candidates() -> Vec<PathBuf> {
    let mut paths = Vec::new();
    if let Some(path) = env::var_os(VARIABLE).map(PathBuf::from) {
        paths.push(if path.is_dir() { path.join(SONAME) } else { path });
    }
    paths.push(SONAME.into());
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    for home in homes.chain(matching(Path::new("/usr/local"), "cuda")) {
        for lib in ["lib64", "lib", "targets/x86_64-linux/lib"] {
            paths.push(home.join(lib).join(SONAME));
        }
    }
    if let Some(venv) = env::var_os("VIRTUAL_ENV") {
        for python in matching(&Path::new(&venv).join("lib"), "python3") {
            for package in matching(&python.join("site-packages/nvidia"), "") {
                paths.push(package.join("lib").join(SONAME));
            }
        }
    }
    paths
}

/// Entries of `dir` whose name starts with `prefix`, in order.
fn matching(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let has_prefix = |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix));
    let mut found: Vec<_> = entries.flatten().map(|e| e.path()).filter(has_prefix).collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_plain_name_is_tried() {
        assert!(super::candidates().iter().any(|p| p.as_os_str() == super::SONAME));
    }
}
