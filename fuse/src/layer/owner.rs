//! Which file a part of the tar belongs to.

use std::ops::Range;

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

/// What the kernel asks for at least of a device; tar entries begin at every 512 bytes.
const PAGE: u64 = 4096;

/// The file that whoever asked for `tar` most likely reads; `None` if no file has bytes there. Walks the
/// layer's names: for reports, not for reads.
///
/// The kernel asks for whole pages of the device, and so for the end of the file before and the beginning
/// of the one behind, too. The file that is read reaches from the first page into the last; in a single
/// page, where it may be any, a file that lies there whole was rather opened than the end of another. What
/// is left to decide, most bytes do.
pub(crate) fn owner<B: AsRef<[u8]>>(image: &Image<B>, tar: Range<u64>) -> Option<Place> {
    let mut best: Option<(Claim, Place)> = None;
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
                    let Some((claim, offset)) = claim(image, entry.nid, &tar) else {
                        continue;
                    };
                    if best.as_ref().is_none_or(|(other, _)| claim > *other) {
                        let path = String::from_utf8_lossy(&below()).into_owned();
                        best = Some((claim, Place { path, offset }));
                    }
                }
                _ => {}
            }
        }
    }
    best.map(|(_, place)| place)
}

/// How much speaks for a file; the first differing field decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    reaches_through: bool,
    is_whole_in_a_page: bool,
    bytes: u64,
}

/// What speaks for `file` having been read, and the offset in it of its first byte in `tar`; `None` if it
/// has none there.
fn claim<B: AsRef<[u8]>>(image: &Image<B>, file: Nid, tar: &Range<u64>) -> Option<(Claim, u64)> {
    let (mut first, mut end, mut bytes, mut len, mut offset) = (u64::MAX, 0, 0, 0, 0);
    for extent in image.extents(file) {
        len += extent.len;
        let from = extent.tar_offset.max(tar.start);
        let to = (extent.tar_offset + extent.len).min(tar.end);
        if from >= to {
            continue;
        }
        bytes += to - from;
        end = end.max(to);
        if from < first {
            (first, offset) = (from, extent.file_offset + (from - extent.tar_offset));
        }
    }
    let claim = Claim {
        reaches_through: first < tar.start + PAGE && end + PAGE > tar.end,
        is_whole_in_a_page: tar.end - tar.start <= PAGE && bytes == len,
        bytes,
    };
    (bytes > 0).then_some((claim, offset))
}

#[cfg(test)]
mod tests {
    use larder_proto::erofs;
    use larder_test_support::layer::LayerFixture;
    use larder_test_support::noise::Random;
    use larder_test_support::tar::{Entry, TarBuilder};

    use super::*;

    /// Promise: a place in the tar leads to the file whose bytes lie there, and to the offset in it;
    /// a place between files to none.
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
        // The largest of several.
        assert_eq!(found(one..tar_len), at("usr/lib/one", 0));
    }

    /// Regression: of each request for pages the file was told in which they begin, which for small files
    /// is the one before.
    ///
    /// Promise: reading a file through the kernel, which asks for whole pages, leads to this file: always
    /// where it lies in more than a page, and where it shares its one page, if it lies in it whole and is
    /// the largest that does.
    #[test]
    fn the_pages_of_a_file_lead_to_it() {
        let mut random = Random::new(1);
        let mut tar = TarBuilder::new();
        for number in 0..600 {
            let most = [300, 5_000, 40_000][number % 3];
            let content = vec![7; 1 + random.below(most)];
            tar = tar.entry(Entry::file(number.to_string(), content));
        }
        let fixture = LayerFixture::new(tar.finish());
        let tar_len = fixture.tar.len() as u64;
        let metadata = erofs::write(&fixture.tree, tar_len).unwrap();
        let image = Image::open(metadata, tar_len).unwrap();
        let files: Vec<(String, Range<u64>)> = (0..600)
            .map(|number| {
                let name = number.to_string();
                let nid = image.lookup(image.root(), name.as_bytes()).unwrap();
                let extent = image.extents(nid).next().unwrap();
                (name, extent.tar_offset..extent.tar_offset + extent.len)
            })
            .collect();
        let mut told = 0;
        for (name, lies) in &files {
            let pages = lies.start / PAGE * PAGE..lies.end.next_multiple_of(PAGE);
            let is_in = |other: &&(String, Range<u64>)| {
                pages.start <= other.1.start && other.1.end <= pages.end
            };
            let is_one_page = pages.end - pages.start == PAGE;
            let len = |lies: &Range<u64>| lies.end - lies.start;
            let rival = files.iter().filter(is_in).map(|other| len(&other.1)).max();
            if is_one_page && rival > Some(len(lies)) {
                continue;
            }
            let found = owner(&image, pages.start..pages.end.min(tar_len)).unwrap();
            if is_one_page && found.path != *name {
                // Two of the same length.
                continue;
            }
            assert_eq!((&found.path, found.offset), (name, 0));
            told += 1;
        }
        assert!(told > 400, "{told}");
    }
}
