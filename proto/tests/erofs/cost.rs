//! What an index costs: bytes of metadata per file, and its share of the layer.

use larder_proto::digest::{Algorithm, Digest};
use larder_proto::erofs::{Image, write};
use larder_proto::index::{Chunk, IndexParts, StoredIndex};
use larder_proto::limits;
use larder_proto::tree::{Extent, Kind, ROOT};

use crate::layer::Layer;

/// Most bytes of metadata per file, before compression.
const FILE_BYTES_MAX: usize = 110;

/// Files in a directory, as Python's packages have.
const FILES_PER_DIRECTORY: usize = 12;

/// A tree like that of many packages, each with times of its own: directories of a dozen files, forty
/// files below one before the next is filled. Its tar is as long as `file_len` says, and not made.
fn packages(files: usize, file_len: u64) -> (Layer, u64) {
    let mut layer = Layer::new();
    let (mut directories, mut made, mut tar_len) = (vec![ROOT], 0, 512);
    while made < files {
        let parent = directories[made / 40 % directories.len()];
        let directory = layer.directory(parent, format!("package-{made}"));
        directories.push(directory);
        made += 1;
        for number in 0..FILES_PER_DIRECTORY.min(files - made) {
            let extent = Extent {
                file_offset: 0,
                tar_offset: tar_len + 512,
                len: file_len,
            };
            tar_len = extent.tar_offset + file_len.next_multiple_of(512);
            let kind = Kind::Regular {
                size: file_len,
                extents: vec![extent],
            };
            let file = layer.add(directory, format!("some_module_{number}.py"), kind);
            let seconds = i64::try_from(made / 1000).unwrap();
            layer.tree.node_mut(file).mtime.seconds += seconds;
            made += 1;
        }
    }
    (layer, tar_len)
}

/// Promise: a layer of 100,000 files takes at most 110 bytes of metadata for each.
#[test]
fn metadata_takes_at_most_110_bytes_per_file() {
    let (layer, tar_len) = packages(100_000, 5000);
    let image = write(&layer.tree, tar_len).unwrap();
    let files = Image::open(&image[..], tar_len).unwrap().inode_count();
    let files = usize::try_from(files).unwrap();
    assert!(files >= 100_000, "{files} files");
    let len = image.len();
    assert!(
        len <= files * FILE_BYTES_MAX,
        "{len} bytes for {files} files"
    );
}

/// Promise: the stored index of a layer of ordinary files, of 16 KiB each, takes at most 1 % of its tar.
#[test]
fn the_stored_index_takes_at_most_one_percent_of_the_tar() {
    let (layer, tar_len) = packages(10_000, 16 << 10);
    let metadata = write(&layer.tree, tar_len).unwrap();
    let len = limits::CHUNK_TARGET_DEFAULT;
    // Digests do not compress; how the chunks are cut changes little about their number.
    let chunks: Vec<_> = (0..tar_len / u64::from(len))
        .map(|number| Chunk {
            offset: number * u64::from(len),
            len,
            stored_offset: number * u64::from(len / 3),
            stored_len: len / 3,
            frame: Algorithm::Blake3.digest(&number.to_le_bytes()),
            content: Algorithm::Blake3.digest(&number.to_be_bytes()),
        })
        .collect();
    let index = IndexParts {
        diff_id: Digest::of(b"tar"),
        tar_len,
        chunk_target: len,
        algorithm: Algorithm::Blake3,
        metadata: &metadata,
        chunks: &chunks,
        implied: &[],
    };
    let stored = StoredIndex::seal(&index.encode(), 0).unwrap();
    let stored_len = stored.tail.len() as u64;
    assert!(
        stored_len * 100 <= tar_len,
        "{stored_len} bytes for a tar of {tar_len}"
    );
}
