//! Index decoder, footer and stored index: whatever the bytes, no panic and no memory beyond them.
//!
//! - An accepted index has chunks that cover its tar and its frames without gaps, each within the
//!   limits, and every offset leads to the chunk that holds it.
//! - An accepted index with an accepted metadata image can be walked to its end.
#![no_main]

use larder_proto::erofs::Image;
use larder_proto::index::{Footer, Index};
use larder_proto::limits;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = Footer::decode(bytes, u64::MAX);
    let Ok(index) = Index::open(bytes) else {
        return;
    };
    let (mut tar, mut blob) = (0, 0);
    for (row, chunk) in index.chunks().enumerate() {
        assert_eq!(
            (chunk.offset, chunk.stored_offset),
            (tar, blob),
            "chunks leave no gaps"
        );
        assert!(chunk.len > 0 && chunk.len <= limits::CHUNK_BYTES_MAX);
        assert!(chunk.stored_len > 0 && chunk.stored_len <= limits::FRAME_BYTES_MAX);
        assert_eq!(index.row_at(chunk.offset), Some(row));
        assert_eq!(index.row_at(chunk.end() - 1), Some(row));
        (tar, blob) = (chunk.end(), chunk.stored_range().end);
    }
    assert_eq!(tar, index.tar_len());
    assert_eq!(blob, index.frames_len());
    assert_eq!(index.row_at(tar), None);
    assert!(
        index
            .implied()
            .all(|path| !path.is_empty() && !path.starts_with(b"/"))
    );
    if let Ok(image) = Image::open(index.metadata(), index.tar_len()) {
        image.to_tree();
    }
});
