use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

/// A file mapped read-only into memory.
///
/// The contents are undefined if another process truncates or rewrites the file while it is mapped, as for any
/// program that maps its weights.
#[derive(Debug)]
pub struct MappedFile(memmap2::Mmap);

impl MappedFile {
    /// Maps the whole file at `path`.
    ///
    /// # Errors
    /// Whatever opening or mapping the file reports.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the mapping is private and read-only, and lives as long as the slices handed out by `deref`.
        // A concurrent truncation by another process is outside of what a program can prevent; see the type's
        // documentation.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Self(map))
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
