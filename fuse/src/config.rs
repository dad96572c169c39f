//! What a data plane is started with.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::observer::{Logged, Observer};
use crate::store::{Disk, StdDisk};
use crate::supervisor::Handover;

/// How long a read may wait for its bytes by default: long enough for a registry to restart,
/// short enough for a container to notice that it does not come back.
const READ_DEADLINE: Duration = Duration::from_secs(30);

/// What is gone stays gone, and a container reads all the time.
const REFUSALS_LAST: Duration = Duration::from_secs(30);

/// Share of the disk that is left free by default, percent: ext4 reserves the same for root.
const MIN_FREE_PERCENT: u8 = 5;

/// A chunk's digest costs 33 µs for 256 KiB, so once an hour is not felt; most reads in between are
/// answered by the kernel's page cache.
const VERIFY_AGAIN_AFTER: Duration = Duration::from_hours(1);

/// Disks change bits in months, not in hours; a pass reads everything.
const SCRUB_EVERY: Duration = Duration::from_hours(24);

/// Settings of a [`crate::DataPlane`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DataPlaneConfig {
    /// Directory of everything the data plane keeps; made 0700.
    pub root: PathBuf,
    /// Which file system serves the trees.
    pub driver: DriverChoice,
    /// Longest time a read waits for bytes that are not in the store; then it fails with EIO.
    pub read_deadline: Duration,
    /// How long a source that says no (it has no such blob, or does not give it to us) is not asked again,
    /// but for a second look.
    pub refusals_last: Duration,
    /// Percent of the disk below which the store stops caching, `0..=100`.
    pub min_free_percent: u8,
    /// A read that takes this long is reported as slow; without it, none is.
    pub slow_read: Option<Duration>,
    /// Who is told of slow reads and of layers that lied.
    pub observer: Arc<dyn Observer>,
    /// Bytes the store may take on its disk; 0 for as many as there are.
    pub store_bytes_max: u64,
    /// When layers that nobody reads are completed.
    pub completion: Completion,
    /// Most bytes per second that completing layers takes, of all of them together; without it, what readers
    /// leave of the link.
    pub background_bandwidth: Option<NonZeroU64>,
    /// Longest blob of a layer that comes whole with its index, if the link brings it in the time of the round
    /// trip that is saved; 0 for none. Bytes that nobody may read, for a request less.
    pub whole_layer_max: u64,
    /// What becomes of running containers whose layer turns out to be a lie.
    pub quarantine: Quarantine,
    /// How the kernel reads the devices.
    pub device_reads: DeviceReads,
    /// For how long a chunk that was verified counts as such where it is not read by us: for the next daemon, and for what is
    /// mounted directly. What we read is verified whenever it comes from the disk.
    pub verify_again_after: Duration,
    /// How often files that the kernel reads directly are read through and verified.
    pub scrub_every: Duration,
    /// The file operations of the store; tests put failing ones here.
    pub disk: Arc<dyn Disk>,
    /// Whether a kernel that can (6.9) is asked to send requests again after a takeover. Tests switch it
    /// off, to see what earlier kernels make of it.
    pub resend: bool,
    /// What a daemon before had, and who keeps it for the next one; `None` without a supervisor.
    pub handover: Option<Arc<Handover>>,
}

impl DataPlaneConfig {
    /// The defaults, for a data plane at `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            driver: DriverChoice::Auto,
            read_deadline: READ_DEADLINE,
            refusals_last: REFUSALS_LAST,
            min_free_percent: MIN_FREE_PERCENT,
            slow_read: None,
            observer: Arc::new(Logged),
            store_bytes_max: 0,
            completion: Completion::default(),
            background_bandwidth: None,
            whole_layer_max: 0,
            quarantine: Quarantine::default(),
            device_reads: DeviceReads::default(),
            verify_again_after: VERIFY_AGAIN_AFTER,
            scrub_every: SCRUB_EVERY,
            disk: Arc::new(StdDisk),
            resend: true,
            handover: None,
        }
    }
}

/// For how long nobody may have waited for the network before a layer is completed: longer than the
/// pauses within a start, whose reads have the link for themselves, and whose bytes are counted.
const QUIET: Duration = Duration::from_secs(30);

/// After this long a layer is completed also where somebody always waits for something: between the
/// reads, slowly. Until its proof, an index is a claim.
const LATEST: Duration = Duration::from_mins(5);

/// When layers are completed that are mounted and not proven. A proof that is waited for is not held
/// up by this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// Whether they are at all.
    pub enabled: bool,
    /// For how long no read of the node may have waited for the network.
    pub quiet: Duration,
    /// After this long it is begun between reads.
    pub latest: Duration,
}

impl Default for Completion {
    fn default() -> Self {
        Self {
            enabled: true,
            quiet: QUIET,
            latest: LATEST,
        }
    }
}

/// What a quarantine means for who has a layer mounted already. There are no new mounts in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Quarantine {
    /// Running containers go on.
    #[default]
    Refuse,
    /// Reads that reach the data plane fail with EIO. What the kernel has in memory is read on.
    Eio,
}

/// Which file system serves the trees of layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DriverChoice {
    /// EROFS where the kernel does it well, else FUSE.
    #[default]
    Auto,
    /// EROFS, or no start.
    Erofs,
    /// The FUSE tree.
    Fuse,
}

impl std::str::FromStr for DriverChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "erofs" => Ok(Self::Erofs),
            "fuse" => Ok(Self::Fuse),
            other => Err(format!("{other:?} is not one of auto, erofs, fuse")),
        }
    }
}

/// How the kernel reads a device: `docs/adr/0002-device-reads.md` has the figures of the first two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceReads {
    /// Exactly the bytes EROFS asks for, past the page cache.
    Direct,
    /// Through the page cache of the device file, read ahead by at most this many KiB.
    Buffered {
        /// The session's `read_ahead_kb`.
        read_ahead_kb: u32,
    },
    /// What EROFS asks for, many requests at a time, past the page cache until the layer is proven; from then on buffered.
    /// `docs/adr/0022-cold-layers-are-read-directly.md`.
    DirectUntilProven {
        /// As above, for what is proven.
        read_ahead_kb: u32,
    },
}

impl DeviceReads {
    /// The same where the kernel may do so, else buffered always.
    pub(crate) const fn allowed(self, may_read_directly: bool) -> Self {
        match self {
            Self::DirectUntilProven { read_ahead_kb } if !may_read_directly => {
                Self::Buffered { read_ahead_kb }
            }
            other => other,
        }
    }

    /// Whether EROFS itself ever reads a device past the page cache.
    pub(crate) const fn is_direct_until_proven(self) -> bool {
        matches!(self, Self::DirectUntilProven { .. })
    }

    /// The session's `read_ahead_kb`, where anything is read ahead.
    pub(crate) const fn read_ahead_kb(self) -> Option<u32> {
        match self {
            Self::Direct => None,
            Self::Buffered { read_ahead_kb } | Self::DirectUntilProven { read_ahead_kb } => {
                Some(read_ahead_kb)
            }
        }
    }
}

impl Default for DeviceReads {
    fn default() -> Self {
        Self::DirectUntilProven { read_ahead_kb: 128 }
    }
}
