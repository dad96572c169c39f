//! Files of the store, as a crash, a bad disk or another build may leave them: whatever is in them, no
//! panic, and memory in proportion to them.
//!
//! - A `layer.json` that is accepted is written back as what it was read as, and names no file outside
//!   of its directory.
//! - A profile that is accepted is within its limits, and is written back as what it was read as.
//! - A `present` that is accepted was written for exactly so many chunks, and verifies none.
//!
//! The first byte of the input chooses the file. A `present` gets a fitting sum, or nothing would ever
//! come past it.
#![no_main]

use larder_proto::digest::Algorithm;
use larder_proto::profile::{LAYERS_MAX, Profile, READS_MAX};
use libfuzzer_sys::fuzz_target;

#[path = "../../fuse/src/store/bits.rs"]
mod bits;
#[path = "../../fuse/src/store/presence.rs"]
#[expect(dead_code, reason = "its crate uses more of it")]
mod presence;
#[path = "../../fuse/src/store/record.rs"]
#[expect(dead_code, reason = "its crate uses more of it")]
mod record;

/// What `presence` takes from its crate.
mod sync {
    pub(crate) use std::sync::atomic;
}

use presence::{ChunkState, Presence};
use record::Record;

fuzz_target!(|bytes: &[u8]| {
    match bytes.split_first() {
        Some((0..96, bytes)) => layer(bytes),
        Some((96..128, bytes)) => profile(bytes),
        Some((rows, bytes)) => present(bytes, usize::from(rows - 128) * 37),
        None => {}
    }
});

fn layer(bytes: &[u8]) {
    let Ok(record) = Record::decode(bytes) else {
        return;
    };
    assert_eq!(Record::decode(&record.encode()), Ok(record.clone()));
    for patch in &record.patches {
        assert!(!patch.key.contains(['/', '.', '\0']));
    }
}

fn profile(bytes: &[u8]) {
    let Ok(profile) = Profile::decode(bytes) else {
        return;
    };
    assert!(profile.layers.len() <= LAYERS_MAX && profile.reads() <= READS_MAX);
    assert_eq!(Profile::decode(&profile.encode()), Ok(profile));
}

fn present(bytes: &[u8], rows: usize) {
    let sum = Algorithm::Blake3.digest(bytes);
    let bytes = [bytes, sum.as_bytes()].concat();
    let Some(presence) = Presence::decode(&bytes, rows) else {
        return;
    };
    assert_eq!(
        presence.rows(|state| state == ChunkState::Verified).count(),
        0
    );
    assert!(presence.rows(|state| state == ChunkState::Claimed).count() <= rows);
    assert_eq!(presence.encode().len(), bytes.len());
}
