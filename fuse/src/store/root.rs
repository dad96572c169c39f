//! The root directory: its lock, its layers, its counter of slots.

use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use larder_proto::digest::Digest;
use larder_registry::bounded;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::disk::Disk;
use super::floor::{CachingStopped, Floor};
use super::kept::Kept;
use super::ledger::Ledger;
use super::owners::Owner;
use super::pins::Pins;
use super::record::Record;
use super::retired::RETIRED;
use super::stored::{Ended, LayerStoreError, NewLayer, Rules, StoredLayer};
use super::vouched::Vouched;
use crate::private::private_directory;

/// Version of `state.json`, and of the directory layout it stands for. As with [`Record`], fields are only
/// ever added, and `readable_since` says from which version on a build can read it.
const VERSION: u32 = 1;

/// Longest `state.json` that is read, bytes: three numbers take 60, and later builds may add to them.
const STATE_BYTES_MAX: u64 = 64 << 10;

/// Slots taken at once, so that the counter's file is not rewritten for every layer.
const SLOTS_RESERVED: u32 = 64;

/// Slots of the files of the start-up self-test. No layer gets them, and a session serves them once:
/// a start on a full disk could not write down that it took others.
pub(crate) const SELF_TEST_SLOTS: [u32; 2] = [u32::MAX - 1, u32::MAX];

/// How long the lock may still be held by what is left of a daemon that ended: the descriptors of a thread
/// that was just begun, or of a process between fork and exec. Both are gone within milliseconds.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);

/// How often it is tried meanwhile.
const LOCK_LOOK: Duration = Duration::from_millis(10);

/// The beginning of the name of a directory that is not finished, or being removed.
const UNFINISHED: &str = ".";

/// The file that says that the last run wrote down everything.
const ENDED: &str = "ended";

/// Why a root directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenStoreError {
    /// A file operation failed.
    #[error("cannot prepare {path}: {error}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Two daemons would write to the same files.
    #[error("another daemon holds the lock on {path}: stop it, or use another root directory")]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// A newer build was here.
    #[error(
        "{path} was written by a later build, in version {found} of the layout; this build reads \
         {VERSION}: put the later build back. To go back to this one for good, let it stop in order, and \
         remove the root directory and the images that were pulled through it"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: u32,
    },
}

#[derive(Debug, Serialize, Deserialize)]
struct State {
    version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    readable_since: Option<u32>,
    next_slot: u32,
}

/// What every version of [`State`] begins with.
#[derive(Debug, Deserialize)]
struct Versions {
    version: u32,
    readable_since: Option<u32>,
}

/// How much of the disk the store may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes; 0 for no limit.
    pub(crate) bytes_max: u64,
    /// Percent of the disk to be left free.
    pub(crate) min_free_percent: u8,
}

/// The locked root directory of a data plane.
#[derive(Debug)]
pub(crate) struct StoreRoot {
    root: PathBuf,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) rules: Rules,
    pins: Pins,
    slots: Mutex<Slots>,
    /// Slots of the daemon before, see [`super::owners`].
    pub(super) former: Mutex<Vec<(u32, Owner)>>,
    ended: Ended,
    lock: File,
}

#[derive(Debug)]
struct Slots {
    next: u32,
    reserved: u32,
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> OpenStoreError + '_ {
    move |error| OpenStoreError::Io {
        path: path.to_owned(),
        error,
    }
}

impl StoreRoot {
    /// Creates what is missing below `root`, and locks it for this process. `lock` is that of a daemon
    /// before this one, which nobody else could take in between.
    pub(crate) fn open(
        root: &Path,
        disk: Arc<dyn Disk>,
        limits: Limits,
        held: Option<OwnedFd>,
    ) -> Result<Self, OpenStoreError> {
        // The daemon before looked at them. What looks through a root would enter its mounts.
        if held.is_none() {
            for directory in [root.to_owned(), root.join("store")] {
                private_directory(&directory).map_err(at(&directory))?;
            }
        }
        // Mount targets below may be given out by absolute path only.
        let root = &root.canonicalize().map_err(at(root))?;
        let path = root.join("lock");
        let lock = match held.map(File::from) {
            Some(held) if is_at(&held, &path) => held,
            _ => lock(&path)?,
        };
        let ended = take_mark(&root.join(ENDED), &*disk);
        let next_slot = read_state(&root.join("state.json"))?;
        let floor = Floor::new(disk.clone(), root.join("store"), limits.min_free_percent);
        let rules = Rules {
            floor: Arc::new(floor),
            ledger: Arc::new(Ledger::new(limits.bytes_max)),
            vouched: None,
            kept: Arc::new(Kept::new()),
        };
        let store = Self {
            root: root.clone(),
            pins: Pins::load(root.join("pins.json"), disk.clone()),
            disk,
            rules,
            slots: Mutex::new(Slots {
                next: next_slot,
                reserved: next_slot,
            }),
            former: Mutex::default(),
            ended,
            lock,
        };
        store.remove_unfinished();
        Ok(store)
    }

    /// The lock, for the daemon after this one.
    pub(crate) fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// Layers opened from now on believe what daemons before verified, by `vouched`, and keep there what
    /// they verify.
    pub(crate) fn believe(&mut self, vouched: Vouched) {
        self.rules.vouched = Some(Arc::new(vouched));
    }

    /// How long ago the oldest of what was believed may have been verified.
    pub(crate) fn oldest_verified(&self) -> Duration {
        let vouched = self.rules.vouched.as_ref();
        vouched.map_or(Duration::ZERO, |vouched| vouched.oldest())
    }

    /// Leaves the mark that everything was written down: the next start need not look for more.
    pub(crate) fn end(&self) {
        if let Err(error) = self.disk.replace(&self.root.join(ENDED), b"") {
            warn!(%error, "cannot leave the mark of an orderly end; the next start looks closer");
        }
    }

    /// Why nothing is cached now, if so.
    pub(crate) fn caching_stopped(&self) -> Option<CachingStopped> {
        let floor = self.rules.floor.stopped();
        floor.or_else(|| self.rules.ledger.stopped())
    }

    /// Whether there is room.
    pub(crate) fn rules(&self) -> &Rules {
        &self.rules
    }

    /// What is to be kept.
    pub(crate) fn pins(&self) -> &Pins {
        &self.pins
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A slot that no layer had before, in this run or a former one.
    pub(crate) fn new_slot(&self) -> io::Result<u32> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.next == slots.reserved {
            let reserved = slots
                .reserved
                .checked_add(SLOTS_RESERVED)
                .filter(|reserved| *reserved <= SELF_TEST_SLOTS[0])
                .ok_or_else(|| io::Error::other("all slots were used; use a new root directory"))?;
            let state = State {
                version: VERSION,
                readable_since: None,
                next_slot: reserved,
            };
            let bytes = serde_json::to_vec(&state)?;
            self.disk.replace(&self.root.join("state.json"), &bytes)?;
            slots.reserved = reserved;
        }
        slots.next += 1;
        Ok(slots.next - 1)
    }

    /// Adds a layer, or opens it if it is there and in order. What a daemon before served of it is mended, not
    /// thrown away.
    pub(crate) fn add(&self, new: &NewLayer<'_>) -> Result<StoredLayer, LayerStoreError> {
        let id = new.location.digest;
        let (directory, unfinished) = (self.directory(&id), self.unfinished(&id));
        // What could not be opened at the start, and can be now, is worth keeping.
        if let Ok(layer) = self.open_layer(directory.clone())
            && layer.record().location == new.location
        {
            return Ok(layer);
        }
        if !self.former_of(&id).is_empty() && directory.exists() {
            self.doubt(new.slot)?;
            StoredLayer::mend(&directory, new, &*self.disk)?;
            return self.open_layer(directory);
        }
        // Both may be left from an attempt that failed half way.
        let _ = self.disk.remove_directory(&unfinished);
        let _ = self.disk.remove_directory(&directory);
        let made = StoredLayer::create(&unfinished, new, &*self.disk).and_then(|()| {
            let renamed = self.disk.rename(&unfinished, &directory);
            renamed.map_err(|error| LayerStoreError::Io {
                path: directory.clone(),
                error,
            })
        });
        if let Err(error) = made {
            let _ = self.disk.remove_directory(&unfinished);
            return Err(error);
        }
        self.open_layer(directory)
    }

    /// Nothing that a daemon before verified of the layer in `slot` is believed.
    fn doubt(&self, slot: u32) -> Result<(), LayerStoreError> {
        let Some(vouched) = &self.rules.vouched else {
            return Ok(());
        };
        vouched.doubt(slot).map_err(|error| LayerStoreError::Io {
            path: self.root.clone(),
            error,
        })
    }

    /// The layers of a run that ended a moment ago, not opened: their names and records, as far as they can
    /// be read. Slots they have are taken.
    pub(crate) fn records(&self) -> Vec<(Digest, Record)> {
        let entries = std::fs::read_dir(self.root.join("store"));
        let entries = entries.into_iter().flatten();
        let record = |entry: std::fs::DirEntry| {
            let name = entry.file_name();
            let id = format!("sha256:{}", name.to_str()?).parse().ok()?;
            let record = Record::read(&entry.path().join("layer.json")).ok()?;
            (record.location.digest == id).then_some((id, record))
        };
        let records: Vec<(Digest, Record)> = entries.flatten().filter_map(record).collect();
        self.succeed(&records);
        records
    }

    /// Opens one of [`StoreRoot::records`]. One that cannot be opened stays as it is: it is mounted.
    pub(crate) fn open_one(&self, id: &Digest) -> Result<StoredLayer, LayerStoreError> {
        self.open_layer(self.directory(id))
    }

    /// Opens every layer of former runs. What cannot be used is removed: it will be fetched again.
    pub(crate) fn layers(&self) -> Vec<(Digest, StoredLayer)> {
        let Ok(entries) = std::fs::read_dir(self.root.join("store")) else {
            return Vec::new();
        };
        let mut layers = Vec::new();
        for entry in entries.flatten() {
            let name = entry.file_name();
            let id = name
                .to_str()
                .and_then(|name| format!("sha256:{name}").parse().ok());
            let Some(id) = id else { continue };
            let opened = self.open_layer(entry.path()).and_then(|layer| {
                let told = layer.record().location.digest;
                let right = told == id;
                right
                    .then_some(layer)
                    .ok_or(LayerStoreError::Changed("layer.json"))
            });
            match opened {
                Ok(layer) => layers.push((id, layer)),
                // Too many open files, or no memory: the next start may be luckier.
                Err(error) if error.is_passing() => {
                    warn!(layer = %id, %error, "a stored layer cannot be opened now");
                }
                Err(error) => {
                    warn!(layer = %id, %error, "dropping a stored layer; it will be fetched again");
                    self.remove(&id);
                }
            }
        }
        let used = layers.iter().flat_map(|(_, layer)| layer.record().slots());
        if let Some(last) = used.max() {
            self.skip_slots(last);
        }
        layers
    }

    /// Slots up to `last` are taken, whatever the counter says.
    pub(super) fn skip_slots(&self, last: u32) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.next <= last {
            slots.next = last.saturating_add(1);
            slots.reserved = slots.next;
        }
    }

    /// Takes a layer's files away. Who has them open goes on reading them.
    pub(crate) fn remove(&self, id: &Digest) {
        let unfinished = self.unfinished(id);
        let _ = self.disk.remove_directory(&unfinished);
        match self.disk.rename(&self.directory(id), &unfinished) {
            Ok(()) => drop(self.disk.remove_directory(&unfinished)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => warn!(layer = %id, %error, "cannot remove a layer from the store"),
        }
    }

    pub(super) fn open_layer(&self, directory: PathBuf) -> Result<StoredLayer, LayerStoreError> {
        StoredLayer::open(directory, self.disk.clone(), self.rules.clone(), self.ended)
    }

    fn directory(&self, id: &Digest) -> PathBuf {
        self.root.join("store").join(id.hex())
    }

    fn unfinished(&self, id: &Digest) -> PathBuf {
        let name = format!("{UNFINISHED}{}", id.hex());
        self.root.join("store").join(name)
    }

    fn remove_unfinished(&self) {
        let Ok(entries) = std::fs::read_dir(self.root.join("store")) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(UNFINISHED) && !name.starts_with(RETIRED) {
                let _ = self.disk.remove_directory(&entry.path());
            }
        }
    }
}

/// Whether `file` is the one at `path`: the root may be another one by now.
fn is_at(file: &File, path: &Path) -> bool {
    let number = |found: Metadata| (found.dev(), found.ino());
    let ours = file.metadata().map(number).ok();
    ours.is_some() && ours == std::fs::metadata(path).map(number).ok()
}

fn lock(path: &Path) -> Result<File, OpenStoreError> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        // A pipe that somebody put there would be waited for.
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .map_err(at(path))?;
    if !file.metadata().map_err(at(path))?.is_file() {
        let why = io::Error::new(io::ErrorKind::InvalidInput, "it is no file: remove it");
        return Err(at(path)(why));
    }
    let until = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < until => {
                std::thread::sleep(LOCK_LOOK);
            }
            Err(TryLockError::WouldBlock) => {
                return Err(OpenStoreError::Locked {
                    path: path.to_owned(),
                });
            }
            Err(TryLockError::Error(error)) => return Err(at(path)(error)),
        }
    }
}

/// How the last run ended by its mark, which is taken away: only an orderly end puts it back.
fn take_mark(path: &Path, disk: &dyn Disk) -> Ended {
    match disk.remove_file(path) {
        Ok(()) => Ended::Orderly,
        Err(_) => Ended::Badly,
    }
}

/// The next slot by the counter's file. A damaged file is no reason not to start: slots must
/// differ from those of this boot's sessions only, and those die with their daemon.
fn read_state(path: &Path) -> Result<u32, OpenStoreError> {
    const FIRST_SLOT: u32 = 1;
    let bytes = match bounded::read(path, STATE_BYTES_MAX) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(FIRST_SLOT),
        // As one that cannot be understood.
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => Vec::new(),
        Err(error) => return Err(at(path)(error)),
    };
    if let Ok(told) = serde_json::from_slice::<Versions>(&bytes)
        && told.readable_since.unwrap_or(told.version) > VERSION
    {
        return Err(OpenStoreError::Version {
            path: path.to_owned(),
            found: told.version,
        });
    }
    match serde_json::from_slice::<State>(&bytes) {
        Ok(state) => Ok(state.next_slot.max(FIRST_SLOT)),
        Err(error) => {
            warn!(path = %path.display(), %error, "the counter of slots is damaged; starting anew");
            Ok(FIRST_SLOT)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: what a later build wrote is read where it says so, and otherwise refused with what to do;
    /// a damaged counter is no reason not to start.
    #[test]
    fn a_layout_of_a_later_build_is_read_if_it_says_so() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("state.json");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read_state(&path).map_err(|error| error.to_string())
        };
        assert_eq!(read(r#"{"version":1,"next_slot":65}"#), Ok(65));
        let added = r#"{"version":3,"readable_since":1,"next_slot":65,"new":[]}"#;
        assert_eq!(read(added), Ok(65));
        for needs in [
            r#"{"version":2,"next_slot":65}"#,
            r#"{"version":3,"readable_since":2,"slots":{"next":65}}"#,
        ] {
            let refused = read(needs).unwrap_err();
            assert!(refused.contains("put the later build back"), "{refused}");
        }
        for damaged in ["", "{", r#"{"version":1}"#] {
            assert_eq!(read(damaged), Ok(1), "{damaged}");
        }
    }
}
