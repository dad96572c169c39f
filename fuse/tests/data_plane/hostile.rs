//! Indexes made to harm: none is mounted that the readers did not accept from end to end, and what the
//! tar turns out to be is verified before anybody reads it.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use larder_fuse::{Answer, Arrivals, BoxFuture, DriverChoice, LayerSpec, Source};
use larder_proto::annotation::IndexLocation;
use larder_proto::digest::{Algorithm, Digest};
use larder_proto::index::{Chunk, Index, IndexParts, open_stored};
use larder_proto::limits;
use larder_test_support::hostile::Canary;
use larder_test_support::layer::LayerFixture;
use larder_test_support::on_both_drivers;
use larder_test_support::tar::{Entry, TarBuilder};

use crate::scene::{Scene, noise, read};

/// Longest time a refusal may take, in a debug build on a busy machine: the largest index there is has
/// to be decompressed.
const REFUSAL_MAX: Duration = Duration::from_secs(20);

/// A name that the cases replace by others of its length.
const NAME: &str = "aaaaaaaaaaaaaaaaaaaaaaaa";

/// A blob, and where in it the index is said to be.
struct Forged {
    blob: Bytes,
    index: IndexLocation,
}

impl Source for Forged {
    fn name(&self) -> &'static str {
        "forged"
    }

    fn get<'a>(&'a self, range: Range<u64>, _: &'a dyn Arrivals) -> BoxFuture<'a, Answer> {
        let place = |at: u64| usize::try_from(at).unwrap().min(self.blob.len());
        let bytes = self.blob.slice(place(range.start)..place(range.end));
        Box::pin(std::future::ready(Answer::from(bytes)))
    }
}

impl std::fmt::Debug for Forged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Forged({})", self.index)
    }
}

/// An honest layer, taken apart.
struct Parts {
    frames: Vec<u8>,
    index: Vec<u8>,
    chunks: Vec<Chunk>,
    metadata: Vec<u8>,
    tar: Vec<u8>,
}

impl Parts {
    fn honest() -> Self {
        let tar = TarBuilder::new()
            .entry(Entry::directory("d"))
            .entry(Entry::file(format!("d/{NAME}"), noise(3, 200_000)))
            .entry(Entry::symlink("l", "d"))
            .entry(Entry::file("small", "x"))
            .finish();
        let fixture = LayerFixture::new(tar);
        let place = |at: u64| usize::try_from(at).unwrap();
        let start = place(fixture.index.offset);
        let stored = &fixture.blob[start..start + place(fixture.index.stored_len)];
        let index = open_stored(stored, &fixture.index).unwrap();
        let opened = Index::open(&index).unwrap();
        Self {
            frames: fixture.blob[..place(opened.frames_len())].to_vec(),
            metadata: opened.metadata().to_vec(),
            chunks: fixture.chunks,
            tar: fixture.tar,
            index,
        }
    }

    /// The layer with `index` instead of its own, which the annotation vouches for.
    fn with_index(&self, index: &[u8]) -> Forged {
        self.with_stored(&zstd::bulk::compress(index, 1).unwrap(), index.len() as u64)
    }

    /// The same with bytes that are to decompress to `len`.
    fn with_stored(&self, stored: &[u8], len: u64) -> Forged {
        let index = IndexLocation {
            offset: self.frames.len() as u64,
            stored_len: stored.len() as u64,
            len,
            digest: Digest::of(stored),
        };
        let blob = [&self.frames, stored].concat().into();
        Forged { blob, index }
    }

    /// The layer with one change to the bytes of its index.
    fn patched(&self, at: usize, with: &[u8]) -> Forged {
        let mut index = self.index.clone();
        index[at..at + with.len()].copy_from_slice(with);
        self.with_index(&index)
    }

    /// The layer with these parts instead of its own.
    fn rebuilt(&self, chunks: &[Chunk], metadata: &[u8], implied: &[Vec<u8>]) -> Forged {
        let parts = IndexParts {
            diff_id: Digest::of(&self.tar),
            tar_len: self.tar.len() as u64,
            chunk_target: limits::CHUNK_TARGET_MIN,
            algorithm: Algorithm::Blake3,
            metadata,
            chunks,
            implied,
        };
        self.with_index(&parts.encode())
    }

    fn with_chunks(&self, change: impl FnOnce(&mut Vec<Chunk>)) -> Forged {
        let mut chunks = self.chunks.clone();
        change(&mut chunks);
        self.rebuilt(&chunks, &self.metadata, &[])
    }

    fn with_metadata(&self, change: impl FnOnce(&mut Vec<u8>)) -> Forged {
        let mut metadata = self.metadata.clone();
        change(&mut metadata);
        self.rebuilt(&self.chunks, &metadata, &[])
    }

    /// The layer with another name of the same length where [`NAME`] is.
    fn renamed(&self, name: &str) -> Forged {
        assert_eq!(name.len(), NAME.len());
        self.with_metadata(|bytes| replace(bytes, NAME.as_bytes(), name.as_bytes()))
    }
}

fn replace(bytes: &mut [u8], old: &[u8], new: &[u8]) {
    let at = bytes.windows(old.len()).position(|window| window == old);
    let at = at.expect("it is there");
    bytes[at..at + new.len()].copy_from_slice(new);
}

fn put(bytes: &mut [u8], at: usize, with: &[u8]) {
    bytes[at..at + with.len()].copy_from_slice(with);
}

/// Indexes as a whole: what the annotation and the header say.
#[expect(clippy::too_many_lines, reason = "a table, which formatting stretches")]
fn of_the_index(parts: &Parts) -> Vec<(&'static str, Forged, &'static str)> {
    let stored = zstd::bulk::compress(&parts.index, 1).unwrap();
    let len = parts.index.len() as u64;
    let mut flipped = parts.with_stored(&stored, len);
    flipped.index.digest = Digest::of(b"another index");
    let mut outside = parts.with_stored(&stored, len);
    outside.index.offset += 1 << 40;
    let zeros = vec![0; usize::try_from(limits::INDEX_BYTES_MAX).unwrap()];
    let bomb = zstd::bulk::compress(&zeros, 1).unwrap();
    let mut window = vec![0x28, 0xb5, 0x2f, 0xfd, 0, (41 - 10) << 3];
    window.extend([1, 0, 0]);
    // Where the rows of the section table are: kind, zero, offset, length.
    let row = |n: usize| 80 + 24 * n;
    let u64s = |number: u64| number.to_le_bytes();
    vec![
        ("digest of another index", flipped, "sha256"),
        ("index outside of the blob", outside, ""),
        (
            "shorter than it says",
            parts.with_stored(&stored, len + 1),
            "decompress",
        ),
        (
            "longer than it says",
            parts.with_stored(&stored, len - 1),
            "decompress",
        ),
        (
            "not compressed",
            parts.with_stored(&parts.index, len),
            "decompress",
        ),
        (
            "two indexes",
            parts.with_stored(&[&stored[..], &stored].concat(), len),
            "decompress",
        ),
        (
            "a window of two terabytes",
            parts.with_stored(&window, len),
            "decompress",
        ),
        (
            "a bomb",
            parts.with_stored(&bomb, limits::INDEX_BYTES_MAX),
            "LARDERIX",
        ),
        (
            "a bomb that is longer than it says",
            parts.with_stored(&bomb, 4096),
            "decompress",
        ),
        (
            "cut off",
            parts.with_index(&parts.index[..100]),
            "section table",
        ),
        ("another magic", parts.patched(0, b"LARDERIY"), "LARDERIX"),
        ("version 0", parts.patched(8, &[0, 0]), "another version"),
        ("version 2", parts.patched(8, &[2, 0]), "another version"),
        (
            "an unknown incompatible feature",
            parts.patched(10, &[0, 0x80]),
            "feature",
        ),
        ("an unknown algorithm", parts.patched(16, &[3]), "algorithm"),
        ("no algorithm", parts.patched(16, &[0]), "algorithm"),
        (
            "seventeen sections",
            parts.patched(24, &[17]),
            "too many sections",
        ),
        ("no sections", parts.patched(24, &[0]), "lacks a section"),
        (
            "a tar beyond 2 TiB",
            parts.patched(32, &u64s(1 << 41)),
            "2 TiB",
        ),
        (
            "a tar of another length",
            parts.patched(32, &u64s(512)),
            "cover",
        ),
        (
            "a section outside",
            parts.patched(row(1) + 8, &u64s(1 << 30)),
            "outside",
        ),
        (
            "a section whose end wraps",
            parts.patched(row(1) + 16, &u64s(u64::MAX)),
            "outside",
        ),
        (
            "a section in the header",
            parts.patched(row(1) + 8, &u64s(0)),
            "header",
        ),
        (
            "a section that is not aligned",
            parts.patched(row(2) + 8, &u64s(201)),
            "",
        ),
        ("a section twice", parts.patched(row(1), &[1]), "twice"),
        (
            "half a row of chunks",
            parts.patched(row(1) + 16, &u64s(100)),
            "inside a row",
        ),
        ("a decoder", parts.patched(row(3) + 16, &u64s(1)), ""),
    ]
}

/// Chunk tables and implied directories.
fn of_the_chunks(parts: &Parts) -> Vec<(&'static str, Forged, &'static str)> {
    let implied = |paths: &[&str]| {
        let paths: Vec<_> = paths.iter().map(|path| path.as_bytes().to_vec()).collect();
        parts.rebuilt(&parts.chunks, &parts.metadata, &paths)
    };
    vec![
        (
            "a gap",
            parts.with_chunks(|c| c[1].offset += 512),
            "chunk 1",
        ),
        (
            "an overlap",
            parts.with_chunks(|c| c[1].offset -= 512),
            "chunk 1",
        ),
        ("backwards", parts.with_chunks(|c| c.swap(0, 1)), "chunk 0"),
        (
            "an empty chunk",
            parts.with_chunks(|c| c[1].len = 0),
            "chunk 1",
        ),
        (
            "an empty frame",
            parts.with_chunks(|c| c[1].stored_len = 0),
            "chunk 1",
        ),
        (
            "a huge chunk",
            parts.with_chunks(|c| c[1].len = u32::MAX),
            "chunk 1",
        ),
        (
            "a huge frame",
            parts.with_chunks(|c| c[1].stored_len = u32::MAX),
            "chunk 1",
        ),
        (
            "a frame outside",
            parts.with_chunks(|c| c[1].stored_offset = u64::MAX - 1),
            "chunk 1",
        ),
        (
            "one chunk twice",
            parts.with_chunks(|c| c[1] = c[0]),
            "chunk 1",
        ),
        (
            "one chunk a hundred thousand times",
            parts.with_chunks(|c| *c = vec![c[0]; 100_000]),
            "chunk 1",
        ),
        (
            "a chunk too few",
            parts.with_chunks(|c| c.truncate(c.len() - 1)),
            "cover",
        ),
        ("no chunks", parts.with_chunks(Vec::clear), "cover"),
        (
            "an implied path upwards",
            implied(&["../../etc"]),
            "plain form",
        ),
        ("an absolute implied path", implied(&["/etc"]), "plain form"),
        ("implied paths in disorder", implied(&["b", "a"]), "sorted"),
        (
            "an implied path with NUL",
            implied(&["a\0b"]),
            "Linux does not allow",
        ),
    ]
}

/// Metadata images.
#[expect(clippy::too_many_lines, reason = "a table, which formatting stretches")]
fn of_the_metadata(parts: &Parts) -> Vec<(&'static str, Forged, &'static str)> {
    let superblock = |at: usize, with: &'static [u8]| {
        parts.with_metadata(move |bytes| put(bytes, 1024 + at, with))
    };
    let inode = |change: fn(&mut [u8])| {
        // The symlink's inode is the one that its target is inlined behind.
        parts.with_metadata(move |bytes| {
            let mode = 0o120_777_u16.to_le_bytes();
            let at = (1280..bytes.len() - 32)
                .step_by(32)
                .find(|at| bytes[at + 4..at + 6] == mode)
                .expect("a symlink");
            change(&mut bytes[at..at + 32]);
        })
    };
    vec![
        (
            "a name upwards",
            parts.renamed("../../../../etc/passwd\0\0"),
            "",
        ),
        (
            "a name with a slash",
            parts.renamed("aaaaaaaa/aaaaaaaaaaaaaaa"),
            "",
        ),
        (
            "a name with NUL",
            parts.renamed("aaaaaaaa\0aaaaaaaaaaaaaaa"),
            "",
        ),
        ("no EROFS", superblock(0, b"\0\0\0\0"), "superblock"),
        ("blocks of 4096", superblock(12, &[12]), "superblock"),
        ("compressed inodes", superblock(80, &[0xff]), "superblock"),
        ("a root outside", superblock(14, &[0xff, 0xff]), ""),
        (
            "a million inodes",
            superblock(16, &[0, 0, 16]),
            "number of inodes",
        ),
        (
            "a longer image",
            superblock(36, &[0xff, 0xff]),
            "superblock",
        ),
        (
            "attributes outside",
            superblock(44, &[0xff, 0xff, 0xff, 0x7f]),
            "",
        ),
        ("two devices", superblock(86, &[2]), "superblock"),
        (
            "cut off",
            parts.with_metadata(|bytes| bytes.truncate(1024)),
            "",
        ),
        ("empty", parts.with_metadata(Vec::clear), ""),
        (
            "bytes behind its end",
            parts.with_metadata(|bytes| bytes.extend([0; 512])),
            "",
        ),
        (
            "a symlink of 2 GiB",
            inode(|i| put(i, 8, &[0, 0, 0, 0x80])),
            "",
        ),
        ("a compressed file", inode(|i| i[0] = 1 << 1), "would write"),
        (
            "a file in the image",
            inode(|i| put(i, 4, &0o100_644_u16.to_le_bytes())),
            "",
        ),
        (
            "a type Linux does not have",
            inode(|i| put(i, 4, &0o170_777_u16.to_le_bytes())),
            "",
        ),
        ("a link to nothing", inode(|i| put(i, 6, &[9, 0])), "links"),
        (
            "attributes of 256 KiB",
            inode(|i| put(i, 2, &[0xff, 0xff])),
            "",
        ),
    ]
}

async fn add(scene: &Scene, forged: Forged) -> Result<larder_fuse::Layer, String> {
    let spec = LayerSpec {
        blob: Digest::of(&forged.blob),
        index: forged.index,
        sources: vec![Arc::new(forged)],
        elsewhere: None,
    };
    scene
        .plane()
        .add_layer(spec)
        .await
        .map_err(|error| error.to_string())
}

/// What lies in the store, complete or not.
fn stored(scene: &Scene) -> usize {
    std::fs::read_dir(scene.scratch.path().join("root/store"))
        .unwrap()
        .count()
}

/// Promise: an index that is not what our writer writes is refused before anything is mounted or
/// stored, at once, by a reason; nothing outside of the root is touched.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_indexes_are_refused_before_anything_is_mounted() {
    let scene = Scene::new(DriverChoice::Fuse).await;
    let canary = Canary::new(scene.scratch.path()).unwrap();
    let parts = Parts::honest();
    let honest = parts.with_index(&parts.index);
    let table = [
        of_the_index(&parts),
        of_the_chunks(&parts),
        of_the_metadata(&parts),
    ]
    .concat_all();
    assert!(table.len() >= 60, "{} hostile indexes", table.len());
    let mut problems = Vec::new();
    for (name, forged, words) in table {
        let begun = Instant::now();
        let answer = add(&scene, forged).await.map(drop);
        let took = begun.elapsed();
        let refused = matches!(&answer, Err(told) if told.contains(words) && told.len() < 2_000);
        if !refused || took > REFUSAL_MAX || stored(&scene) != 0 {
            let left = stored(&scene);
            problems.push(format!("{name}: {answer:?} after {took:?}, {left} stored"));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    add(&scene, honest).await.unwrap();
    assert_eq!(canary.touched(), [""; 0]);
}

/// Tables of cases, one after another.
trait ConcatAll<T> {
    fn concat_all(self) -> Vec<T>;
}

impl<T, const N: usize> ConcatAll<T> for [Vec<T>; N] {
    fn concat_all(self) -> Vec<T> {
        self.into_iter().flatten().collect()
    }
}

/// Chunks whose index is sound, and whose bytes are not what it says.
fn of_the_bytes(parts: &Parts) -> Vec<(&'static str, Forged)> {
    // The chunk with the file's first bytes.
    let row = 1;
    let digest = |bytes: &[u8]| Algorithm::Blake3.digest(bytes);
    // A chunk that has `frame` where its own is, with the digest of `frame`.
    let with_frame = |frame: &[u8]| {
        let mut forged = Parts::honest();
        let range = forged.chunks[row].stored_range();
        let place = |at: u64| usize::try_from(at).unwrap();
        let range = place(range.start)..place(range.end);
        let grown = frame.len() as i128 - range.len() as i128;
        forged.frames.splice(range, frame.iter().copied());
        let chunk = &mut forged.chunks[row];
        chunk.stored_len = u32::try_from(frame.len()).unwrap();
        chunk.frame = digest(frame);
        for later in &mut forged.chunks[row + 1..] {
            let moved = i128::from(later.stored_offset) + grown;
            later.stored_offset = u64::try_from(moved).unwrap();
        }
        let (chunks, metadata) = (forged.chunks.clone(), forged.metadata.clone());
        forged.rebuilt(&chunks, &metadata, &[])
    };
    let zeros = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
    let len = parts.chunks[row].len as usize;
    let other = zstd::bulk::compress(&noise(99, len), 1).unwrap();
    let short = zstd::bulk::compress(&noise(99, len / 2), 1).unwrap();
    vec![
        (
            "frame of another digest",
            parts.with_chunks(|c| c[row].frame = digest(b"x")),
        ),
        (
            "content of another digest",
            parts.with_chunks(|c| c[row].content = digest(b"x")),
        ),
        ("a bomb of 64 MiB", with_frame(&zeros)),
        ("other bytes", with_frame(&other)),
        ("too few bytes", with_frame(&short)),
        ("noise", with_frame(&noise(5, 1_000))),
    ]
}

/// Promise: a chunk that is not what the index says is an I/O error for whoever reads it, never other
/// bytes and never memory; everything else of the layer is read as it is.
async fn hostile_chunks_are_never_read(driver: DriverChoice) {
    let scene = Scene::with(driver, |config| {
        config.read_deadline = Duration::from_millis(500);
    })
    .await;
    let parts = Parts::honest();
    for (number, (name, forged)) in of_the_bytes(&parts).into_iter().enumerate() {
        let layer = add(&scene, forged)
            .await
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        let target = scene.directory(&number.to_string());
        layer.mount(&target, &[]).await.unwrap();
        let file = target.join("d").join(NAME);
        let found = read(file).await.map(|bytes| bytes.len());
        let error = found.expect_err(name).raw_os_error();
        assert_eq!(error, Some(5), "{name}");
        assert_eq!(read(target.join("small")).await.unwrap(), b"x", "{name}");
        assert_eq!(
            std::fs::read_link(target.join("l")).unwrap(),
            Path::new("d"),
            "{name}"
        );
    }
}

/// Promise: an index that is sound but of another image's tar gives I/O errors, no bytes of either.
async fn the_index_of_another_image_gives_no_bytes(driver: DriverChoice) {
    let scene = Scene::with(driver, |config| {
        config.read_deadline = Duration::from_millis(500);
    })
    .await;
    let parts = Parts::honest();
    let mut other = Parts::honest();
    other.frames.iter_mut().for_each(|byte| *byte = !*byte);
    let layer = add(&scene, other.with_index(&parts.index)).await.unwrap();
    let target = scene.directory("at");
    layer.mount(&target, &[]).await.unwrap();
    for file in ["small".to_owned(), format!("d/{NAME}")] {
        let error = read(target.join(&file)).await.expect_err(&file);
        assert_eq!(error.raw_os_error(), Some(5), "{file}");
    }
}

on_both_drivers!(
    hostile_chunks_are_never_read,
    the_index_of_another_image_gives_no_bytes,
);
