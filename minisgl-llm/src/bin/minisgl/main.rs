//! The `minisgl` command.
fn main() {}
