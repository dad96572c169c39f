//! Pipes where files are expected.

use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, mknodat};

/// Makes a pipe at `path`: who opens it to read waits for good.
pub fn pipe(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).expect("make a pipe");
}
