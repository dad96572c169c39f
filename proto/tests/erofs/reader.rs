//! Our own reading of our images.

use larder_proto::erofs::{FileType, Image};
use larder_proto::tree::{Kind, difference};

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
