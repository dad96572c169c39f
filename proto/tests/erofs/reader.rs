//! Our own reading of our images.

use larder_proto::erofs::{FileType, Image};
use larder_proto::tree::{Extent, Kind, ROOT, difference};

use crate::layer::Layer;
use crate::samples;

/// Writing and reading a tree gives the same tree, and writing that the same bytes.
#[test]
fn every_sample_comes_back_as_its_tree() {
    for (name, layer) in samples::all() {
        let bytes = layer.write();
        let image = Image::open(&bytes[..], layer.tar_len())
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let tree = image.to_tree();
        if let Some(difference) = difference(&layer.tree, &tree) {
            panic!("{name}: tree against image: {difference}");
        }
        let again = larder_proto::erofs::write(&tree, layer.tar_len()).unwrap();
        assert!(again == bytes, "{name}: written again, the bytes differ");
    }
}

/// Every path is found by name, and every directory lists exactly its entries, from any cookie.
#[test]
fn lookup_and_listing_agree_with_the_tree() {
    for (name, layer) in samples::all() {
        let image = Image::open(layer.write(), layer.tar_len()).unwrap();
        for (path, id) in layer.paths() {
            let parts = path.split(|&b| b == b'/').filter(|part| !part.is_empty());
            let nid = parts.fold(image.root(), |at, part| image.lookup(at, part).unwrap());
            let Kind::Directory(entries) = &layer.tree.node(id).kind else {
                assert!(image.read_dir(nid, 0).next().is_none());
                assert!(image.lookup(nid, b"x").is_none());
                continue;
            };
            let all: Vec<_> = image.read_dir(nid, 0).collect();
            let listed: Vec<_> = all.iter().filter(|e| !e.is_dot()).map(|e| e.name).collect();
            assert_eq!(listed, entries.keys().collect::<Vec<_>>(), "{name}");
            assert_eq!(all.len(), entries.len() + 2);
            for (i, entry) in all.iter().enumerate().step_by(7) {
                assert!(
                    image
                        .read_dir(nid, entry.next)
                        .eq(all[i + 1..].iter().copied())
                );
            }
            for absent in [&b""[..], b"\0", b"zzz", b"!!", &[0xFF; 256]] {
                assert_eq!(image.lookup(nid, absent), None);
            }
            assert_eq!(image.inode(nid).unwrap().file_type, FileType::Directory);
        }
    }
}

/// What a read of any part of a file needs is what the whole file has there, no more and no less.
#[test]
fn extents_within_a_range_are_those_of_the_file() {
    for layer in [samples::sparse(), samples::types()] {
        let image = Image::open(layer.write(), layer.tar_len()).unwrap();
        for (path, _) in layer.paths() {
            let parts = path.split(|&b| b == b'/').filter(|part| !part.is_empty());
            let nid = parts.fold(image.root(), |at, part| image.lookup(at, part).unwrap());
            let size = image.inode(nid).unwrap().size;
            let all: Vec<_> = image.extents(nid).collect();
            for start in (0..size).step_by(509).take(500) {
                for end in [start + 1, start + 512, start + 4096, size].map(|end| end.min(size)) {
                    let found = image.extents_within(nid, start..end);
                    let found = found.filter_map(|extent| cut(extent, start, end));
                    let expected = all.iter().filter_map(|&extent| cut(extent, start, end));
                    assert!(found.eq(expected), "{start}..{end} of {size}");
                }
            }
        }
    }
}

/// The part of an extent that lies in `start..end` of the file.
fn cut(extent: Extent, start: u64, end: u64) -> Option<Extent> {
    let from = extent.file_offset.max(start);
    let to = (extent.file_offset + extent.len).min(end);
    (from < to).then(|| Extent {
        file_offset: from,
        tar_offset: extent.tar_offset + (from - extent.file_offset),
        len: to - from,
    })
}

/// Reading a sparse file with the largest map piece by piece takes seconds, not the hours that
/// walking the map from its start for each piece would.
#[test]
fn pieces_of_a_sparse_file_cost_what_they_are_long() {
    let (size, piece) = ((2 << 30), 64 << 10);
    let mut layer = Layer::new();
    let ends: [(u64, &[u8]); 2] = [(0, &[1; 512]), (size - 512, &[2; 512])];
    layer.sparse(ROOT, "file", size, &ends);
    let image = Image::open(layer.write(), layer.tar_len()).unwrap();
    let nid = image.lookup(image.root(), b"file").unwrap();
    let pieces = (0..size).step_by(piece);
    let found = pieces.map(|at| image.extents_within(nid, at..at + piece as u64).count());
    assert_eq!(found.sum::<usize>(), 2);
}
