//! What a container of an image reads when it starts, found out without running anything.
//!
//! ```text
//! command ─▶ files in the order a start reads them ─▶ pieces of these ─▶ chunks of each layer
//! ```
//!
//! Whatever an image says only decides which of its own bytes are listed: a wrong list costs bytes. So what
//! is odd (a program that is not there, a damaged ELF file) ends that branch of the walk and is no error.

mod arguments;
mod chunks;
mod command;
mod elf;
mod interpreters;
mod libraries;
mod object;
mod python;
mod reader;
#[cfg(test)]
mod sample;
mod shebang;
mod shell;
#[cfg(test)]
mod tests;
mod walk;

use std::ops::Range;

use larder_proto::access::Access;

use crate::view::{Found, View};
pub(crate) use command::Command;
pub(crate) use reader::{Place, Reader};

/// Counts the versions of these rules: what was listed by others is not taken for what would be listed now.
pub(crate) const RULES: u32 = 2;

/// Bytes of files.
pub(crate) trait Content: Send {
    /// The bytes `range` of a regular file of `view`, fewer if it ends before.
    fn read(
        &mut self,
        view: &View,
        file: &Found,
        range: Range<u64>,
    ) -> impl Future<Output = Result<Vec<u8>, String>> + Send;
}

/// The chunks of each layer, by number, that a start of `command` is expected to read. `Err` says which
/// layer could not be read, and why.
pub(crate) async fn list(
    view: &View,
    content: &mut impl Content,
    command: &Command,
) -> Result<Vec<Vec<Access>>, String> {
    let pieces = walk::pieces(view, content, command).await?;
    Ok(chunks::accesses(view, &pieces))
}
