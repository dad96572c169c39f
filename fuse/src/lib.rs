//! The data plane: store, fetcher, FUSE session, EROFS and overlay mounts.
//!
//! ```text
//! kernel ─▶ session (FUSE) ─▶ store: all chunks there? ─▶ reply
//!                                └─▶ fetch ─▶ source ─▶ verify ─▶ store ─▶ reply
//! ```
//!
//! [`DataPlane`] is one node's worth of it; a [`Layer`] is what it keeps of one layer, and mounts.
//! Only `session` and `sys` know FUSE; `store` does not know `fetch`; `sys` holds the unsafe code.

pub mod mount;
pub mod stderr;
pub mod supervisor;

mod apart;
mod config;
mod counts;
mod driver;
mod failpoint;
mod fetch;
mod layer;
mod life;
mod observer;
mod plane;
mod private;
mod proof;
mod recording;
mod session;
mod source;
mod store;
mod sync;
mod sys;

pub use config::{Completion, DataPlaneConfig, DeviceReads, DriverChoice, Quarantine};
pub use counts::{
    BOUNDS_SECONDS, Count, Counts, Delay, Durations, Measured, Outcome, ReadFailure, SenderCounts,
    SenderKind,
};
pub use driver::{Driver, DriverReport, EROFS_FILES_SINCE, kernel_version};
#[doc(hidden)]
pub use failpoint::failpoint;
pub use fetch::FetchError;
pub use layer::{
    ImpliedDirectory, Layer, LayerId, LayerSpec, LayerState, LayerStatus, MountError,
    NodeAttributes, SourceStatus, Trust, Verdicts,
};
pub use observer::{Observer, SlowRead};
pub use plane::{
    AddLayerError, ChainLayer, DataPlane, MergeLayersError, RemoveLayerError, RemovedLayer,
    StartError, StoreUsage, UnmountError,
};
pub use private::{check_place, create_private, private_directory};
pub use recording::{Recorded, Recording, Settling};
#[doc(hidden)]
pub use session::write_state_as;
pub use source::{
    Answer, Arrivals, BoxFuture, Delivery, Elsewhere, FailureKind, RegistrySource, Source,
    SourceFailure,
};
pub use store::{CachingStopped, Disk, OnDisk, OpenStoreError, PinError, Space, StdDisk};
