//! Which file a part of the tar belongs to.

use larder_proto::erofs::{FileType, Image, Nid};

/// Entries looked at before the search ends without an answer: more than any image has, and 50 ms.
const ENTRIES_MAX: usize = 2_000_000;

/// Bytes of a path that are told; the kernel has no longer ones.
const PATH_BYTES_MAX: usize = 4096;

/// A file, and a place in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// From the root of the layer, without a leading slash. Bytes that are no text are replaced.
    pub(crate) path: String,
    /// Offset in the file.
    pub(crate) offset: u64,
}

/// The file to which the first bytes of a file in `tar` belong; `None` if there are none. Walks the
/// layer's names: for reports, not for reads.
pub(crate) fn owner<B: AsRef<[u8]>>(image: &Image<B>, tar: std::ops::Range<u64>) -> Option<Place> {
    let mut best: Option<(u64, Place)> = None;
    let mut seen = 0;
    // Directories still to be listed, with their paths.
    let mut pending = vec![(image.root(), Vec::new())];
    while let Some((directory, path)) = pending.pop() {
        for entry in image.read_dir(directory, 0).filter(|entry| !entry.is_dot()) {
            seen += 1;
            if seen > ENTRIES_MAX {
                return best.map(|(_, place)| place);
            }
            let below = || {
                let mut below = path.clone();
                if !below.is_empty() {
                    below.push(b'/');
                }
                below.extend_from_slice(entry.name);
                below.truncate(PATH_BYTES_MAX);
                below
            };
            match entry.file_type {
                FileType::Directory => pending.push((entry.nid, below())),
                FileType::Regular => {
                    let found = first_overlap(image, entry.nid, &tar);
                    let Some((at, offset)) = found else { continue };
                    if best.as_ref().is_none_or(|(before, _)| at < *before) {
                        let path = String::from_utf8_lossy(&below()).into_owned();
                        best = Some((at, Place { path, offset }));
                    }
                    if at == tar.start {
                        return best.map(|(_, place)| place);
                    }
                }
                _ => {}
            }
        }
    }
    best.map(|(_, place)| place)
}

/// Where in the tar, and where in the file, the first byte of a file in `tar` lies.
fn first_overlap<B: AsRef<[u8]>>(
    image: &Image<B>,
    file: Nid,
    tar: &std::ops::Range<u64>,
) -> Option<(u64, u64)> {
    image.extents(file).find_map(|extent| {
        let end = extent.tar_offset + extent.len;
        let at = extent.tar_offset.max(tar.start);
        (at < end && at < tar.end).then(|| (at, extent.file_offset + (at - extent.tar_offset)))
    })
}

#[cfg(test)]
mod tests {
    use larder_proto::erofs;
    use larder_test_support::layer::LayerFixture;
    use larder_test_support::tar::{Entry, TarBuilder};

    use super::*;

    /// Promise: a place in the tar leads to the file whose bytes lie there, and to the offset in it;
    /// a place between files to the next one in the range, or to none.
    #[test]
    fn a_place_in_the_tar_leads_to_its_file() {
        let file = |name: &str, len: usize| Entry::file(name, vec![7; len]);
        let tar = TarBuilder::new()
            .entry(Entry::directory("usr"))
            .entry(Entry::directory("usr/lib"))
            .entry(file("usr/lib/one", 70_000))
            .entry(file("two", 3000))
            .entry(Entry::hard_link("also", "two"))
            .entry(file("three", 0));
        let fixture = LayerFixture::new(tar.finish());
        let tar_len = fixture.tar.len() as u64;
        let metadata = erofs::write(&fixture.tree, tar_len).unwrap();
        let image = Image::open(metadata, tar_len).unwrap();
        let found =
            |tar: std::ops::Range<u64>| owner(&image, tar).map(|place| (place.path, place.offset));
        let [one, two] = [b"usr/lib/one".as_slice(), b"two"].map(|path| {
            let nid = path
                .split(|byte| *byte == b'/')
                .try_fold(image.root(), |nid, name| image.lookup(nid, name));
            let extent = image.extents(nid.unwrap()).next().unwrap();
            extent.tar_offset
        });
        let at = |path: &str, offset: u64| Some((path.to_owned(), offset));
        assert_eq!(found(one..one + 4096), at("usr/lib/one", 0));
        assert_eq!(found(one + 65_536..one + 66_000), at("usr/lib/one", 65_536));
        // From its header on.
        assert_eq!(found(one - 512..one + 4096), at("usr/lib/one", 0));
        assert_eq!(found(one - 512..one), None);
        assert_eq!(found(tar_len - 512..tar_len), None);
        let (path, offset) = found(two + 1000..two + 1001).unwrap();
        assert!(matches!(&*path, "two" | "also"), "{path}");
        assert_eq!(offset, 1000);
        // The first of several.
        assert_eq!(found(one..tar_len), at("usr/lib/one", 0));
    }
}
