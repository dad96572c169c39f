//! Standard output.

use std::io::{self, ErrorKind, Write};

use anyhow::Context;
use serde::Serialize;

/// Writes `text`; a reader that has enough, as `head` does, is no failure.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    write(&mut io::stdout().lock(), text).context("write to standard output")
}

/// Writes a value for programs.
pub(super) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}

fn write(out: &mut impl Write, text: &str) -> io::Result<()> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Refuses(ErrorKind);

    impl Write for Refuses {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Promise: `status | head` ends quietly, and a full disk is an error and no panic.
    #[test]
    fn a_reader_that_has_enough_is_no_failure_and_a_full_disk_is_one() {
        assert!(write(&mut Refuses(ErrorKind::BrokenPipe), "text").is_ok());
        assert!(write(&mut Refuses(ErrorKind::StorageFull), "text").is_err());
    }
}
