//! Disks that change bits.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Flips a bit of the byte at `at`, behind the back of whoever uses the file.
///
/// # Panics
///
/// If the file has no such byte, or cannot be written.
pub fn rot(path: &Path, at: u64) {
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .write(true)
        .open(path)
        .expect("the file can be written");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("it has that byte");
    file.write_all_at(&[byte[0] ^ 4], at)
        .expect("there is room");
}
