//! A small layer in Larder's form, made from a tar.

use bytes::Bytes;
use larder_proto::annotation::IndexLocation;
use larder_proto::digest::{Algorithm, Digest};
use larder_proto::erofs;
use larder_proto::index::{Chunk, IndexParts, StoredIndex, open_stored};
use larder_proto::limits;
use larder_proto::scan::{LayerScan, ScanOptions, ScannedLayer};
use larder_proto::tree::Tree;

/// A layer: its tar, and the blob a converter would push for it.
#[derive(Debug, Clone)]
pub struct LayerFixture {
    /// The uncompressed tar.
    pub tar: Vec<u8>,
    /// What the tar unpacks to, by the index's account.
    pub tree: Tree,
    /// Frames, index and footer.
    pub blob: Bytes,
    /// SHA-256 of the blob.
    pub digest: Digest,
    /// Where in the blob the index lies.
    pub index: IndexLocation,
    /// The chunk table.
    pub chunks: Vec<Chunk>,
}

impl LayerFixture {
    /// The layer of `tar`, in the smallest chunks there are.
    ///
    /// # Panics
    /// If the tar has no tree.
    pub fn new(tar: Vec<u8>) -> Self {
        Self::lying(tar, |_| {})
    }

    /// The layer of `tar`, in chunks of about `chunk_target` bytes.
    ///
    /// # Panics
    /// If the tar has no tree.
    pub fn sized(tar: Vec<u8>, chunk_target: u32) -> Self {
        Self::build(tar, chunk_target, None, |_| {})
    }

    /// The same with an index whose tree `lie` changed before it was written.
    ///
    /// # Panics
    /// If the tar has no tree, or the changed tree cannot be written.
    pub fn lying(tar: Vec<u8>, lie: impl FnOnce(&mut Tree)) -> Self {
        Self::build(tar, limits::CHUNK_TARGET_MIN, None, lie)
    }

    /// The layer of `tar` with an index that claims to be of the tar with digest `diff_id`.
    ///
    /// # Panics
    /// If the tar has no tree.
    pub fn claiming(tar: Vec<u8>, diff_id: Digest) -> Self {
        Self::build(tar, limits::CHUNK_TARGET_MIN, Some(diff_id), |_| {})
    }

    /// The decoded index, as a node keeps it.
    ///
    /// # Panics
    /// If the blob has none.
    pub fn decoded_index(&self) -> Vec<u8> {
        let place = |at: u64| usize::try_from(at).expect("a small blob");
        let (from, len) = (self.index.offset, self.index.stored_len);
        let stored = &self.blob[place(from)..place(from + len)];
        open_stored(stored, &self.index).expect("a good index")
    }

    fn build(
        tar: Vec<u8>,
        chunk_target: u32,
        claim: Option<Digest>,
        lie: impl FnOnce(&mut Tree),
    ) -> Self {
        let (mut scanned, cuts) = scan(&tar, chunk_target);
        lie(&mut scanned.tree);
        let metadata = erofs::write(&scanned.tree, scanned.tar_len).expect("the tree is in limits");
        let (mut blob, chunks) = frames(&tar, &cuts);
        let index = IndexParts {
            diff_id: claim.unwrap_or_else(|| Digest::of(&tar)),
            tar_len: scanned.tar_len,
            chunk_target,
            algorithm: Algorithm::Blake3,
            metadata: &metadata,
            chunks: &chunks,
            implied: &scanned.implied,
        }
        .encode();
        let stored = StoredIndex::seal(&index, blob.len() as u64).expect("a small index");
        blob.extend(&stored.tail);
        Self {
            tar,
            tree: scanned.tree,
            digest: Digest::of(&blob),
            blob: blob.into(),
            index: stored.location,
            chunks,
        }
    }
}

fn scan(tar: &[u8], chunk_target: u32) -> (ScannedLayer, Vec<u64>) {
    let mut scan = LayerScan::new(ScanOptions { chunk_target });
    let mut cuts = Vec::new();
    scan.feed(tar, &mut cuts).expect("a sound tar");
    let scanned = scan.finish(&mut cuts).expect("a tar with a tree");
    (scanned, cuts)
}

fn frames(tar: &[u8], cuts: &[u64]) -> (Vec<u8>, Vec<Chunk>) {
    let (mut blob, mut chunks) = (Vec::new(), Vec::new());
    let mut offset = 0;
    for &end in cuts {
        let place = |at: u64| usize::try_from(at).expect("a tar in memory");
        let content = &tar[place(offset)..place(end)];
        let frame = zstd::bulk::compress(content, 1).expect("compression into memory");
        chunks.push(Chunk {
            offset,
            len: u32::try_from(content.len()).expect("CHUNK_BYTES_MAX fits"),
            stored_offset: blob.len() as u64,
            stored_len: u32::try_from(frame.len()).expect("FRAME_BYTES_MAX fits"),
            frame: Algorithm::Blake3.digest(&frame),
            content: Algorithm::Blake3.digest(content),
        });
        blob.extend(frame);
        offset = end;
    }
    (blob, chunks)
}
