//! Whose the slots of a session are, in memory that outlives the daemon.
//!
//! `layer.json` says it, too. But a mount lives as long as its container, and the kernel goes on asking by
//! the number of its slot when the disk has lost that file. So the next daemon is told here, and a layer
//! whose index was fetched again gets the slots that it had.

use std::sync::{MutexGuard, PoisonError};

use larder_proto::digest::Digest;
use serde::{Deserialize, Serialize};

use super::record::{Patch, Record};
use super::root::StoreRoot;

/// Whose a slot is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    /// The layer, by its index.
    pub(crate) layer: Digest,
    /// The slot of its device.
    pub(crate) device: u32,
    /// The patched image that is served in this one, if it is not the device's own.
    pub(crate) patch: Option<Patch>,
}

#[derive(Serialize, Deserialize)]
struct Raw {
    layer: String,
    device: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    patch: Option<Patch>,
}

impl Owner {
    fn encode(&self) -> Vec<u8> {
        let raw = Raw {
            layer: self.layer.to_string(),
            device: self.device,
            patch: self.patch.clone(),
        };
        serde_json::to_vec(&raw).expect("strings and numbers always serialise")
    }

    fn decode(text: &[u8]) -> Option<Self> {
        let raw: Raw = serde_json::from_slice(text).ok()?;
        Some(Self {
            layer: raw.layer.parse().ok()?,
            device: raw.device,
            patch: raw.patch,
        })
    }

    /// All slots of a layer, with what they are for.
    fn all(layer: Digest, record: &Record) -> Vec<(u32, Self)> {
        let owner = |patch| Self {
            layer,
            device: record.slot,
            patch,
        };
        let patches = record.patches.iter();
        let mut all: Vec<_> = patches
            .map(|patch| (patch.slot, owner(Some(patch.clone()))))
            .collect();
        all.push((record.slot, owner(None)));
        all
    }
}

impl StoreRoot {
    /// Tells the daemons after this one which slots a layer has.
    pub(crate) fn own(&self, layer: &Digest, record: &Record) {
        let Some(vouched) = &self.rules().vouched else {
            return;
        };
        for (slot, owner) in Owner::all(*layer, record) {
            if let Err(error) = vouched.set_text(slot, &owner.encode()) {
                tracing::debug!(slot, %error, "the next daemon is not told whose a slot is");
            }
        }
    }

    /// The slots are nobody's any more: their layer was removed.
    pub(crate) fn disown(&self, slots: &[u32]) {
        self.lock_former().retain(|(slot, _)| !slots.contains(slot));
        for slot in slots {
            if let Some(vouched) = &self.rules().vouched {
                let _ = vouched.set_text(*slot, b"");
            }
        }
    }

    /// Takes up what a daemon before told of its slots, in its memory and in the `records` of its layers.
    /// None of these slots is given to another layer.
    pub(super) fn succeed(&self, records: &[(Digest, Record)]) {
        let mut former: Vec<_> = records
            .iter()
            .flat_map(|(layer, record)| Owner::all(*layer, record))
            .collect();
        if let Some(vouched) = &self.rules().vouched {
            for slot in vouched.slots() {
                let owner = vouched.text(slot).ok();
                let owner = owner.and_then(|text| Owner::decode(&text));
                if let Some(owner) = owner
                    && former.iter().all(|(known, _)| *known != slot)
                {
                    former.push((slot, owner));
                }
            }
        }
        if let Some(last) = former.iter().map(|(slot, _)| *slot).max() {
            self.skip_slots(last);
        }
        *self.lock_former() = former;
    }

    /// Slots that a daemon before had given out, and to whom.
    pub(crate) fn former(&self) -> Vec<(u32, Owner)> {
        self.lock_former().clone()
    }

    /// The slots of `layer` among them.
    pub(crate) fn former_of(&self, layer: &Digest) -> Vec<(u32, Owner)> {
        let mut all = self.former();
        all.retain(|(_, owner)| owner.layer == *layer);
        all
    }

    /// The slot that the device of `layer` had, or a new one.
    pub(crate) fn slot_for(&self, layer: &Digest) -> std::io::Result<u32> {
        let former = self.former_of(layer);
        former
            .first()
            .map_or_else(|| self.new_slot(), |(_, owner)| Ok(owner.device))
    }

    /// The patched image `key` that `layer` had.
    pub(crate) fn former_patch(&self, layer: &Digest, key: &str) -> Option<Patch> {
        let patches = self.former_of(layer).into_iter();
        let mut patches = patches.filter_map(|(_, owner)| owner.patch);
        patches.find(|patch| patch.key == key)
    }

    fn lock_former(&self) -> MutexGuard<'_, Vec<(u32, Owner)>> {
        self.former.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use super::super::vouched::{TEXT_BYTES_MAX, Vouched};
    use super::*;
    use std::os::fd::AsFd;
    use std::time::Duration;

    fn owner(patch: Option<Patch>) -> Owner {
        Owner {
            layer: Digest::of(b"index"),
            device: u32::MAX,
            patch,
        }
    }

    fn patch() -> Patch {
        Patch {
            key: "f".repeat(64),
            slot: u32::MAX,
            sum: "f".repeat(64),
        }
    }

    /// Promise: the next daemon knows whose each slot is, however long the names; what is no such text says
    /// nothing.
    #[test]
    fn the_next_daemon_knows_whose_a_slot_is() {
        let hour = Duration::from_hours(1);
        let first = Vouched::new(hour).unwrap();
        let (one, other) = (owner(None), owner(Some(patch())));
        assert!(other.encode().len() <= TEXT_BYTES_MAX);
        for (slot, owner) in [(1, &one), (u32::MAX, &other), (7, &one)] {
            first.set_text(slot, &owner.encode()).unwrap();
        }
        first.set_text(7, b"").unwrap();
        let memory = first.as_fd().try_clone_to_owned().unwrap();
        let second = Vouched::of(memory, hour).unwrap();
        assert_eq!(second.slots(), [1, 7, u32::MAX]);
        let told = |slot| Owner::decode(&second.text(slot).unwrap());
        assert_eq!((told(1), told(u32::MAX)), (Some(one), Some(other)));
        assert_eq!((told(7), told(8)), (None, None));
        for odd in [&b"{"[..], b"null", br#"{"layer":"sha256:x","device":1}"#] {
            assert_eq!(Owner::decode(odd), None);
        }
    }
}
