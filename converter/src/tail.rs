//! The end of a layer in Larder's form: its index, and the footer that must agree with it.

use larder_proto::annotation::IndexLocation;
use larder_proto::index::{FOOTER_FRAME_LEN, Footer, Index, SKIPPABLE_HEADER_LEN, open_stored};

/// Opens the index in `tail`, which is the blob from the stored index on to its end at `size`.
///
/// Everything but the metadata image is checked; `Err` is what is wrong, in words.
pub(crate) fn open(
    tail: &[u8],
    location: &IndexLocation,
    size: u64,
) -> Result<Index<Vec<u8>>, String> {
    let stored = usize::try_from(location.stored_len)
        .ok()
        .and_then(|len| tail.get(..len));
    let stored = stored.ok_or("its annotation points beyond its end")?;
    let footer = usize::try_from(FOOTER_FRAME_LEN).ok();
    let footer = footer
        .and_then(|len| tail.len().checked_sub(len))
        .map(|at| &tail[at..]);
    let footer = Footer::decode(footer.ok_or("it has no footer")?, size);
    if footer.map_err(|error| error.to_string())?.location != *location {
        return Err("its footer and its annotation disagree".into());
    }
    let index = open_stored(stored, location).map_err(|error| error.to_string())?;
    let index = Index::open(index).map_err(|error| error.to_string())?;
    if index.frames_len() + SKIPPABLE_HEADER_LEN != location.offset {
        return Err("there are bytes between its last chunk and its index".into());
    }
    Ok(index)
}
