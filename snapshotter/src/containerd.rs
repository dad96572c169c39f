//! containerd's own services, and what is to be found in its content store.

mod lookup;

pub use larder_containerd::{
    Blob, CallError, Containerd, ContentError, STALLED_MAX, Session, WriteError, unique,
};
pub use lookup::chain_ids;
pub(crate) use lookup::{Image, Key, Lookup, chain_id};
