//! Restricted EROFS reader: whatever the bytes, no panic, no endless walk, no memory beyond them.
//!
//! - An accepted image becomes a tree, and every extent of it lies within the tar.
//! - Lookup finds exactly what listing shows.
//! - Writing that tree again gives an image the reader accepts and reads as the same tree.
//!
//! The first eight bytes of the input are the length of the tar.
#![no_main]

use larder_proto::erofs::{self, FileType, Image};
use larder_proto::tree::{Kind, difference};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((tar_len, bytes)) = bytes.split_first_chunk::<8>() else {
        return;
    };
    let tar_len = u64::from_le_bytes(*tar_len);
    let Ok(image) = Image::open(bytes, tar_len) else {
        return;
    };
    walk(&image, bytes.len());
    let tree = image.to_tree();
    for node in &tree.nodes {
        if let Kind::Regular { extents, .. } = &node.kind {
            assert!(
                extents
                    .iter()
                    .all(|extent| extent.tar_offset + extent.len <= tar_len)
            );
        }
    }
    let again = erofs::write(&tree, tar_len).expect("what was read can be written");
    let again = Image::open(again, tar_len).expect("what was written can be read");
    assert_eq!(difference(&tree, &again.to_tree()), None);
});

/// Visits every directory; an image of `len` bytes has no room for more than `len` entries.
fn walk(image: &Image<&[u8]>, len: usize) {
    let mut left = vec![image.root()];
    let mut seen = 0;
    while let Some(directory) = left.pop() {
        for entry in image.read_dir(directory, 0) {
            seen += 1;
            assert!(seen <= len, "the walk ends");
            assert_eq!(image.lookup(directory, entry.name), Some(entry.nid));
            let inode = image.inode(entry.nid).expect("an entry has an inode");
            if inode.file_type == FileType::Directory && !entry.is_dot() {
                left.push(entry.nid);
            }
        }
    }
}
