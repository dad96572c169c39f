//! What the index promises: it reads back as written, and refuses whatever does not fit together.

use proptest::prelude::*;

use super::*;
use crate::digest::{Algorithm, Digest};

fn parts<'a>(chunks: &'a [Chunk], implied: &'a [Vec<u8>]) -> IndexParts<'a> {
    IndexParts {
        diff_id: Digest::of(b"tar"),
        tar_len: chunks.last().map_or(0, Chunk::end),
        chunk_target: 1 << 18,
        algorithm: Algorithm::Blake3,
        metadata: b"metadata image",
        chunks,
        implied,
    }
}

fn chunks(lens: &[(u32, u32)]) -> Vec<Chunk> {
    let (mut offset, mut stored_offset) = (0, 0);
    let chunk = |&(len, stored_len): &(u32, u32)| {
        let digest = Algorithm::Blake3.digest(&len.to_le_bytes());
        let chunk = Chunk {
            offset,
            len,
            stored_offset,
            stored_len,
            frame: digest,
            content: digest,
        };
        offset += u64::from(len);
        stored_offset += u64::from(stored_len);
        chunk
    };
    lens.iter().map(chunk).collect()
}

#[test]
fn an_index_reads_back_as_written() {
    let rows = chunks(&[(10, 5), (20, 6), (30, 7)]);
    let implied = [b"etc".to_vec(), b"usr/lib".to_vec()];
    let index = Index::open(parts(&rows, &implied).encode()).unwrap();
    assert_eq!(index.chunks().collect::<Vec<_>>(), rows);
    assert_eq!(
        index.implied().map(<[u8]>::to_vec).collect::<Vec<_>>(),
        implied
    );
    assert_eq!(index.metadata(), b"metadata image");
    assert_eq!((index.tar_len(), index.frames_len()), (60, 18));
    assert_eq!(
        (index.diff_id(), index.chunk_target()),
        (Digest::of(b"tar"), 1 << 18)
    );
}

#[test]
fn every_offset_leads_to_the_chunk_that_holds_it() {
    let rows = chunks(&[(10, 5), (20, 6), (30, 7)]);
    let index = Index::open(parts(&rows, &[]).encode()).unwrap();
    for offset in 0..60 {
        let row = index.row_at(offset).unwrap();
        assert!(rows[row].offset <= offset && offset < rows[row].end());
    }
    assert_eq!(index.row_at(60), None);
    assert_eq!(index.rows(9..11), 0..2);
    assert_eq!(index.rows(10..1000), 1..3);
    assert_eq!(index.rows(5..5), 0..0);
    assert_eq!(index.rows(60..70), 0..0);
}

#[test]
fn chunks_with_gaps_or_beyond_limits_are_refused() {
    let good = chunks(&[(10, 5), (20, 6)]);
    for change in [
        (|c: &mut Chunk| c.offset += 1) as fn(&mut Chunk),
        |c| c.stored_offset += 1,
        |c| c.len = 0,
        |c| c.stored_len = 0,
        |c| c.len = crate::limits::CHUNK_BYTES_MAX + 1,
        |c| c.stored_len = crate::limits::FRAME_BYTES_MAX + 1,
    ] {
        let mut bad = good.clone();
        change(&mut bad[1]);
        let error = Index::open(parts(&bad, &[]).encode()).unwrap_err();
        assert!(matches!(error, IndexError::Chunk { row: 1, .. }), "{error}");
    }
}

#[test]
fn implied_paths_that_could_escape_are_refused() {
    for path in ["", "/etc", "a//b", "a/../b", ".", "a/"] {
        let implied = [path.as_bytes().to_vec()];
        assert!(
            Index::open(parts(&[], &implied).encode()).is_err(),
            "{path:?}"
        );
    }
    let unsorted = [b"b".to_vec(), b"a".to_vec()];
    assert!(Index::open(parts(&[], &unsorted).encode()).is_err());
}

#[test]
fn a_sealed_index_is_found_by_its_footer_and_opens() {
    let bytes = parts(&chunks(&[(10, 5)]), &[]).encode();
    let sealed = StoredIndex::seal(&bytes, 5).unwrap();
    let blob = [&[0; 5], &sealed.tail[..]].concat();
    let frame = &blob[blob.len() - usize::try_from(FOOTER_FRAME_LEN).unwrap()..];
    let footer = Footer::decode(frame, blob.len() as u64).unwrap();
    assert_eq!(footer.location, sealed.location);
    let start = usize::try_from(footer.location.offset).unwrap();
    let end = start + usize::try_from(footer.location.stored_len).unwrap();
    assert_eq!(
        open_stored(&blob[start..end], &footer.location).unwrap(),
        bytes
    );
    let flipped: Vec<u8> = blob[start..end].iter().map(|b| b ^ 1).collect();
    let error = open_stored(&flipped, &footer.location).unwrap_err();
    assert!(matches!(error, StoredError::Digest { .. }), "{error}");
}

proptest! {
    /// Any bytes at all: an answer, never a panic.
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let _ = Index::open(&bytes);
        let _ = Footer::decode(&bytes, bytes.len() as u64);
    }

    /// A damaged index is refused or still covers its tar without gaps.
    #[test]
    fn damage_never_breaks_the_chunk_table(at in 0_usize..800, with in any::<u8>()) {
        let rows = chunks(&[(10, 5), (20, 6), (30, 7)]);
        let mut bytes = parts(&rows, &[b"etc".to_vec()]).encode();
        let at = at % bytes.len();
        bytes[at] = with;
        if let Ok(index) = Index::open(&bytes) {
            let covered: u64 = index.chunks().map(|c| u64::from(c.len)).sum();
            prop_assert_eq!(covered, index.tar_len());
        }
    }
}
