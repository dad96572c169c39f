//! The metadata image of a layer: an EROFS file system that holds names and attributes, and whose
//! file data lies in the layer's tar.
//!
//! ```text
//! block  0..2   zero
//!        2      superblock, device slots, then inodes with what is inlined in them
//!        …      directory and symlink blocks
//!        …      shared extended attributes
//!        blocks the tar: the image's device, mapped behind the image's own blocks
//! ```
//!
//! Blocks have 512 bytes, so tar data is block-aligned where it lies. The kernel mounts the image
//! with `device=` naming a file of the tar's bytes; [`Image`] serves the same metadata to us, and
//! is the gate the image has to pass before the kernel sees it. A layer's image has one device; one that was
//! merged from the images of several layers has one for the tar of each.

mod bitmap;
mod directory;
mod format;
mod image;
mod merge;
mod write;

pub use format::FileType;
pub use image::{DirEntry, Extents, Image, ImageError, Inode, Nid, ReadDir, Xattr, Xattrs};
pub use merge::{MergeError, merge};
pub use write::{WriteError, write};
