//! What the node keeps of layers: `<root>/store/<hex of the index's digest>/`.
//!
//! ```text
//! index       the decoded index, mapped read-only
//! meta        its EROFS metadata image, validated before anything reads it
//! meta-<key>  the same with the attributes of implied directories filled in
//! device      the tar, sparse: chunks appear as they are read
//! present     which chunks the device holds, a hint: each is verified at its first use
//! known       which of them were there whole, and durable: what is wrong with those is damage
//! layer.json  what names the layer, and the sums of the files above and its own
//! direct      the kernel reads the device past us, in this boot
//! ```
//!
//! A layer that is removed while somebody has files of it open becomes `store/.retired-<slot>`, and goes
//! when nobody has any more.
//!
//! What many layers show together is beside them, in `store/merged`.
//!
//! Indexes that lied are kept apart, see [`Lies`].

mod bits;
mod claims;
#[cfg(test)]
mod crash;
mod device;
mod direct;
mod disk;
mod evict;
mod floor;
mod handed;
mod intact;
mod kept;
mod ledger;
mod lies;
mod merged;
mod noted;
mod occupied;
mod owners;
mod pins;
mod presence;
mod record;
mod recorded;
mod reread;
mod retired;
mod room;
mod root;
#[cfg(test)]
#[cfg(feature = "shuttle")]
mod schedules;
mod stored;
mod uses;
mod vouched;

pub(crate) use device::Published;
pub(crate) use direct::boot_id;
pub use disk::{Disk, Space, StdDisk};
pub use floor::CachingStopped;
pub(crate) use ledger::Ledger;
pub(crate) use lies::Lies;
pub(crate) use merged::MergedFile;
pub use occupied::OnDisk;
pub use pins::PinError;
pub(crate) use presence::ChunkState;
pub(crate) use record::{Proof, Record};
pub(crate) use reread::There;
pub(crate) use room::Room;
pub use root::OpenStoreError;
pub(crate) use root::{Limits, SELF_TEST_SLOTS, StoreRoot};
pub(crate) use stored::{Checked, LayerStoreError, NewLayer, StoredLayer};
pub(crate) use vouched::Vouched;
