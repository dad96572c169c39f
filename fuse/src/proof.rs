//! Proving that an index tells the truth about its tar.
//!
//! All chunks are there, and each is what the index says. What is left is the index itself: the
//! tar must have the diffID, and the tree it unpacks to must be the tree that is mounted.

use std::io;

use larder_proto::digest::Digest;
use larder_proto::scan::{LayerScan, ScanOptions};
use larder_proto::tree;
use sha2::{Digest as _, Sha256};

use crate::store::{Checked, StoredLayer};

/// Bytes read at a time: large enough for the disk, small enough for the background.
const PIECE: usize = 256 << 10;

/// What a proof came to.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// The index tells the truth.
    True,
    /// It does not, in the way told.
    Lie(String),
    /// Not known: some chunks were evicted meanwhile.
    Evicted,
    /// Not known: the disk failed, or some chunks were damaged and have to come again.
    Unknown(String),
}

/// Reads the whole layer. Takes seconds for large layers; for a background thread.
pub(crate) fn prove(layer: &StoredLayer) -> Verdict {
    let (before, damaged) = (layer.evictions(), layer.damaged());
    let examined = examine(layer);
    let damaged = layer.damaged() - damaged;
    if damaged > 0 {
        return Verdict::Unknown(format!("{damaged} chunks were damaged on the disk"));
    }
    let lie = match examined {
        Ok(Ok(())) => return Verdict::True,
        // Holes read as zeros.
        _ if layer.evictions() != before => return Verdict::Evicted,
        Ok(Err(lie)) => lie,
        Err(error) => return Verdict::Unknown(format!("cannot read the device: {error}")),
    };
    // What somebody wrote into what the kernel has in memory looks the same; the chunks tell.
    let mut damaged = 0;
    for (row, chunk) in layer.index().chunks().enumerate() {
        damaged += usize::from(layer.verify(row, &chunk) != Checked::Intact);
    }
    if damaged > 0 {
        return Verdict::Unknown(format!("{damaged} chunks were damaged on the disk"));
    }
    Verdict::Lie(lie)
}

fn examine(layer: &StoredLayer) -> io::Result<Result<(), String>> {
    let index = layer.index();
    // Where it would cut does not matter: each chunk was verified as it is.
    let mut scan = LayerScan::new(ScanOptions::default());
    let (mut hasher, mut cuts) = (Sha256::new(), Vec::new());
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    while at < index.tar_len() {
        let len = usize::try_from(index.tar_len() - at).map_or(PIECE, |left| left.min(PIECE));
        let bytes = &mut buffer[..len];
        if !layer.read_verified(bytes, at) {
            return Err(io::Error::other("chunks are gone"));
        }
        hasher.update(&*bytes);
        cuts.clear();
        if let Err(error) = scan.feed(bytes, &mut cuts) {
            return Ok(Err(format!("its tar: {error}")));
        }
        at += len as u64;
    }
    let found = Digest::from_bytes(hasher.finalize().into());
    if found != index.diff_id() {
        return Ok(Err(format!(
            "its tar has digest {found}, the index says {}",
            index.diff_id()
        )));
    }
    let scanned = match scan.finish(&mut cuts) {
        Ok(scanned) => scanned,
        Err(error) => return Ok(Err(format!("its tar: {error}"))),
    };
    if !index
        .implied()
        .eq(scanned.implied.iter().map(Vec::as_slice))
    {
        return Ok(Err(
            "the index lists other implied directories than the tar has".into(),
        ));
    }
    if let Some(difference) = tree::difference(&scanned.tree, &layer.image().to_tree()) {
        return Ok(Err(format!(
            "{:?} of {:?} is {} in the tar and {} in the index",
            difference.aspect,
            String::from_utf8_lossy(&difference.path),
            difference.left,
            difference.right
        )));
    }
    Ok(Ok(()))
}
