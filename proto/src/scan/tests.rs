//! Trees of odd tars: what containerd makes of them, entry by entry.

use larder_test_support::tar::{Entry, TarBuilder};

use super::*;
use crate::tree::{DeviceNumber, Kind, Mtime, Node};

/// Scans a whole tar in one piece.
fn scan(tar: &[u8]) -> Result<ScannedLayer, ScanError> {
    scan_in_pieces(tar, tar.len().max(1)).map(|(layer, _)| layer)
}

fn scan_in_pieces(tar: &[u8], piece: usize) -> Result<(ScannedLayer, Vec<u64>), ScanError> {
    let mut scan = LayerScan::new(ScanOptions::default());
    let mut cuts = Vec::new();
    for piece in tar.chunks(piece) {
        scan.feed(piece, &mut cuts)?;
    }
    Ok((scan.finish(&mut cuts)?, cuts))
}

fn tree_of(entries: impl IntoIterator<Item = Entry>) -> ScannedLayer {
    scan(&tar_of(entries)).expect("a tar that can be represented")
}

fn tar_of(entries: impl IntoIterator<Item = Entry>) -> Vec<u8> {
    let builder = entries
        .into_iter()
        .fold(TarBuilder::new(), TarBuilder::entry);
    builder.finish()
}

/// The node at `path`, which must exist.
fn at<'a>(layer: &'a ScannedLayer, path: &str) -> &'a Node {
    let id = layer.tree.find(path.as_bytes());
    layer.tree.node(id.unwrap_or_else(|| panic!("no {path:?}")))
}

/// What the scan refuses as unrepresentable, and says about it.
fn refusal(entries: impl IntoIterator<Item = Entry>) -> String {
    match scan(&tar_of(entries)) {
        Err(error @ ScanError::Unrepresentable { .. }) => error.to_string(),
        other => panic!("expected a refusal, not {other:?}"),
    }
}

#[test]
fn a_file_is_where_its_payload_lies() {
    let layer = tree_of([
        Entry::directory("etc/").mode(0o750).mtime(7),
        Entry::file("etc/hosts", "localhost")
            .owner(1000, 100)
            .mtime(42),
    ]);
    assert_eq!(at(&layer, "etc").mode, 0o750);
    let hosts = at(&layer, "etc/hosts");
    assert_eq!((hosts.uid, hosts.gid, hosts.mode), (1000, 100, 0o644));
    assert_eq!(
        hosts.mtime,
        Mtime {
            seconds: 42,
            nanoseconds: 0
        }
    );
    let Kind::Regular { size: 9, extents } = &hosts.kind else {
        panic!("{hosts:?}");
    };
    assert_eq!((extents[0].tar_offset, extents[0].len), (1024, 9));
    assert!(layer.implied.is_empty());
}

#[test]
fn whiteouts_become_what_overlayfs_wants() {
    let layer = tree_of([
        Entry::file("a/.wh.gone", "").owner(5, 6),
        Entry::file("b/.wh..wh..opq", ""),
    ]);
    let gone = at(&layer, "a/gone");
    assert_eq!(gone.kind, Kind::CharDevice(DeviceNumber::default()));
    assert_eq!((gone.mode, gone.uid, gone.gid), (0, 5, 6));
    let opaque = at(&layer, "b")
        .xattrs
        .get(b"trusted.overlay.opaque".as_slice());
    assert_eq!(opaque.map(Vec::as_slice), Some(b"y".as_slice()));
    assert_eq!(layer.implied, [b"a".to_vec(), b"b".to_vec()]);
}

#[test]
fn a_whiteout_over_an_entry_of_the_layer_is_refused() {
    let said = refusal([Entry::file("a", ""), Entry::file(".wh.a", "")]);
    assert!(
        said.contains("whiteout over an entry of the same layer"),
        "{said}"
    );
}
