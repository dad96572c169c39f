//! What writing an OCI layout promises.

use std::io::{Read as _, Write as _};
use std::path::Path;

use super::*;
use crate::manifest::Document;
use crate::spool;

fn document(text: &str) -> Document {
    Document::new(media_type::OCI_MANIFEST, text.into())
}

fn read(source: &LayoutSource, digest: &Digest) -> Vec<u8> {
    let mut out = Vec::new();
    source
        .blob(digest)
        .unwrap()
        .reader()
        .read_to_end(&mut out)
        .unwrap();
    out
}

fn blob(dir: &Path, bytes: &[u8]) -> std::fs::File {
    let mut file = spool::create(dir).unwrap();
    file.write_all(bytes).unwrap();
    file
}

#[test]
fn a_second_image_leaves_the_first_ones_name() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("new/layout");
    for tag in ["one", "two", "one"] {
        let out = LayoutDestination::new(&dir, Some(tag));
        let manifest = document(&format!("manifest of {tag}"));
        let content = Digest::of(tag.as_bytes());
        out.put_blob(&content, 3, &blob(&out.spool_dir(), tag.as_bytes()))
            .unwrap();
        out.put_bytes(&manifest.digest, &manifest.bytes).unwrap();
        out.finish(manifest.descriptor(), &[]).unwrap();
        assert!(out.has_blob(&content, 3) && !out.has_blob(&content, 4));
    }
    for tag in ["one", "two"] {
        let source = LayoutSource::open(Files::directory(&dir), Some(tag)).unwrap();
        let text = read(&source, &source.root().digest);
        assert_eq!(text, format!("manifest of {tag}").as_bytes());
    }
    let error = LayoutSource::open(Files::directory(&dir), None)
        .unwrap_err()
        .to_string();
    assert!(error.contains("one") && error.contains("two"), "{error}");
    let marker = std::fs::read_to_string(dir.join("oci-layout")).unwrap();
    assert_eq!(marker, r#"{"imageLayoutVersion":"1.0.0"}"#);
}

#[test]
fn a_blob_cut_off_by_a_crash_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let out = LayoutDestination::new(dir.path(), None);
    let digest = Digest::of(b"whole");
    std::fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
    std::fs::write(dir.path().join(blob_name(&digest)), b"wh").unwrap();
    out.put_blob(&digest, 5, &blob(dir.path(), b"whole"))
        .unwrap();
    assert!(out.has_blob(&digest, 5));
}

#[test]
fn an_archive_appears_complete_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.tar");
    let manifest = document("manifest");
    for finished in [false, true, true] {
        let out = ArchiveDestination::new(&path, Some("v1")).unwrap();
        let content = Digest::of(&[9; 1000]);
        out.put_blob(&content, &blob(dir.path(), &[9; 1000]))
            .unwrap();
        out.put_blob(&content, &blob(dir.path(), &[9; 1000]))
            .unwrap();
        out.put_bytes(&manifest.digest, &manifest.bytes).unwrap();
        if !finished {
            drop(out);
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
            continue;
        }
        out.finish(manifest.descriptor(), &[]).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let source = LayoutSource::open(Files::archive(&path).unwrap(), Some("v1")).unwrap();
        assert_eq!(read(&source, &content), [9; 1000]);
        assert_eq!(read(&source, &source.root().digest), b"manifest");
    }
}

#[test]
fn what_is_no_layout_is_named_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let error = LayoutSource::open(Files::directory(dir.path()), None)
        .unwrap_err()
        .to_string();
    assert!(error.contains("not an OCI image layout"), "{error}");
    std::fs::write(dir.path().join("index.json"), "{").unwrap();
    let error = LayoutSource::open(Files::directory(dir.path()), None)
        .unwrap_err()
        .to_string();
    assert!(error.contains("malformed"), "{error}");
}
