//! Which chunks were verified in this boot, in memory that outlives the daemon.
//!
//! A daemon that takes over would verify everything anew, and containers wait for that. What it may
//! believe instead is told in `docs/adr/0011-verified-across-takeovers.md`: in short, a bit that a
//! daemon set after the digest was checked, in this boot, within the hour, for the very file and index
//! that are there now.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use larder_proto::digest::Algorithm;
use rustix::fs::{FallocateFlags, MemfdFlags, SeekFrom, fallocate, memfd_create};

use super::presence::Outliving;
use crate::sys::SharedNumbers;

/// Memory of one slot, bytes: enough for half a million chunks, 128 GiB of tar at the default size; of a
/// larger layer nothing is kept. A layer takes the pages it needs of it, which is one up to 7 GiB.
const PER_SLOT: u64 = 64 << 10;

/// All slots there can be, each at the place its number gives. The 256 TiB are an address, not memory.
const LEN: u64 = PER_SLOT << 32;

/// Numbers before the bits.
const HEAD: usize = TEXT_AT + TEXT_BYTES_MAX / size_of::<u64>();

/// Where among them the text stands that says whose the slot is, see [`super::owners`].
const TEXT_AT: usize = 8;

/// Longest such text, bytes: three digests and two numbers in JSON take 300.
pub(super) const TEXT_BYTES_MAX: usize = 512;

/// What they are.
const FORMAT: usize = 0;
const BINDING: std::ops::Range<usize> = 1..5;
const SINCE: usize = 5;

/// In [`FORMAT`]: the rest means what this build takes it for.
const VERSION: u64 = u64::from_le_bytes(*b"LARDERV2");

/// The bits of all layers.
#[derive(Debug)]
pub(crate) struct Vouched {
    file: Arc<File>,
    /// How old what a daemon before verified may be.
    age_max: Duration,
    /// The oldest that was believed, seconds.
    oldest: AtomicU64,
}

/// What the bits of a layer are about: its index and its device file, no others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Binding([u64; 4]);

/// The bits of one layer.
#[derive(Debug, Clone)]
pub(super) struct OfLayer(Arc<SharedNumbers>);

impl Vouched {
    /// Nothing is vouched for.
    pub(crate) fn new(age_max: Duration) -> io::Result<Self> {
        let file = File::from(memfd_create("larder-verified", MemfdFlags::CLOEXEC)?);
        file.set_len(LEN)?;
        Ok(Self::in_memory(file, age_max))
    }

    /// What a daemon before left, unless it is not what this build expects.
    pub(crate) fn of(memory: OwnedFd, age_max: Duration) -> Option<Self> {
        let file = File::from(memory);
        let is_ours = file.metadata().is_ok_and(|found| found.len() == LEN);
        is_ours.then(|| Self::in_memory(file, age_max))
    }

    fn in_memory(file: File, age_max: Duration) -> Self {
        Self {
            file: Arc::new(file),
            age_max,
            oldest: AtomicU64::new(0),
        }
    }

    /// Names this memory among all there are while it is held: the number of its file.
    pub(crate) fn name(&self) -> u64 {
        self.file.metadata().map_or(0, |found| found.ino())
    }

    /// How long ago the oldest of what was believed may have been verified.
    pub(crate) fn oldest(&self) -> Duration {
        Duration::from_secs(self.oldest.load(Ordering::Relaxed))
    }

    /// The bits of the layer in `slot`, which are all clear unless they were set for `binding`, not too
    /// long ago. `None` for a layer of too many chunks.
    pub(super) fn layer(
        &self,
        slot: u32,
        rows: usize,
        binding: Binding,
    ) -> io::Result<Option<OfLayer>> {
        let numbers = HEAD + rows.div_ceil(64);
        if (numbers * size_of::<u64>()) as u64 > PER_SLOT {
            return Ok(None);
        }
        let memory = SharedNumbers::part(&self.file, begin(slot), numbers)?;
        let layer = OfLayer(Arc::new(memory));
        match layer.age_for(binding).filter(|age| *age < self.age_max) {
            Some(age) => drop(self.oldest.fetch_max(age.as_secs(), Ordering::Relaxed)),
            None => layer.bind(binding),
        }
        Ok(Some(layer))
    }

    /// Nothing is believed any more of what was verified of the layer in `slot`.
    pub(crate) fn doubt(&self, slot: u32) -> io::Result<()> {
        self.file.write_all_at(&[0; size_of::<u64>()], begin(slot))
    }

    /// What [`Vouched::set_text`] left for `slot`.
    pub(super) fn text(&self, slot: u32) -> io::Result<Vec<u8>> {
        let mut text = vec![0; TEXT_BYTES_MAX];
        self.file.read_exact_at(&mut text, text_begin(slot))?;
        text.truncate(text.iter().position(|&b| b == 0).unwrap_or(TEXT_BYTES_MAX));
        Ok(text)
    }

    /// Keeps `text`, which has no zeros, for `slot`. It lies within one page: who is killed meanwhile has
    /// written all of it or nothing.
    pub(super) fn set_text(&self, slot: u32, text: &[u8]) -> io::Result<()> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(io::Error::other("the text does not fit its slot"));
        }
        let mut padded = text.to_vec();
        padded.resize(TEXT_BYTES_MAX, 0);
        self.file.write_all_at(&padded, text_begin(slot))
    }

    /// Slots that anything was kept for.
    pub(super) fn slots(&self) -> Vec<u32> {
        let mut slots = Vec::new();
        let mut at = 0;
        // After the last one there is nothing but a hole, which is an error here.
        while let Ok(data) = rustix::fs::seek(&*self.file, SeekFrom::Data(at)) {
            let Ok(slot) = u32::try_from(data / PER_SLOT) else {
                break;
            };
            slots.push(slot);
            at = begin(slot) + PER_SLOT;
        }
        slots
    }

    /// Gives back the memory of a slot whose layer is gone.
    pub(crate) fn free(&self, slot: u32) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if let Err(error) = fallocate(&self.file, flags, begin(slot), PER_SLOT) {
            tracing::debug!(slot, %error, "a page of memory is not given back");
        }
    }
}

/// Where the memory of a slot begins.
const fn begin(slot: u32) -> u64 {
    slot as u64 * PER_SLOT
}

const fn text_begin(slot: u32) -> u64 {
    begin(slot) + (TEXT_AT * size_of::<u64>()) as u64
}

impl AsFd for Vouched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Binding {
    /// Of the chunks that an index with the sum `index` lists, in the file `device`.
    pub(super) fn of(index: &str, device: &File) -> io::Result<Self> {
        let found = device.metadata()?;
        // Numbers of files are used again. Where a file system has no time of birth, the bits are
        // cleared before a device is replaced all the same.
        let born = found.created().ok();
        let born = born.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let born = born.unwrap_or_default().as_nanos();
        let text = format!(
            "{index} {} {} {born} {}",
            found.dev(),
            found.ino(),
            found.len()
        );
        let digest = Algorithm::Blake3.digest(text.as_bytes());
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(digest.as_bytes().chunks_exact(8)) {
            *word = bytes.try_into().map_or(0, u64::from_le_bytes);
        }
        Ok(Self(words))
    }
}

impl OfLayer {
    /// How old the bits are at most, if they were set for `binding`.
    fn age_for(&self, binding: Binding) -> Option<Duration> {
        let numbers = self.0.numbers();
        let is_ours = numbers[FORMAT].load(Ordering::Acquire) == VERSION;
        let bound = numbers[BINDING].iter();
        let same = bound
            .zip(binding.0)
            .all(|(found, wanted)| found.load(Ordering::Acquire) == wanted);
        let since = numbers[SINCE].load(Ordering::Acquire);
        let age = uptime()?.checked_sub(since)?;
        (is_ours && same).then(|| Duration::from_secs(age))
    }

    /// From now on all bits are clear, and about `binding`.
    pub(super) fn bind(&self, binding: Binding) {
        self.unbind();
        for bits in self.bits() {
            bits.store(0, Ordering::Release);
        }
        self.begun_anew();
        let numbers = self.0.numbers();
        for (number, word) in numbers[BINDING].iter().zip(binding.0) {
            number.store(word, Ordering::Release);
        }
        // Last: what is bound half is not bound.
        numbers[FORMAT].store(VERSION, Ordering::Release);
    }

    /// Nobody believes the bits any more, before what they are about changes.
    pub(super) fn unbind(&self) {
        self.0.numbers()[FORMAT].store(0, Ordering::SeqCst);
    }
}

impl Outliving for OfLayer {
    fn bits(&self) -> &[AtomicU64] {
        &self.0.numbers()[HEAD..]
    }

    fn begun_anew(&self) {
        // Without a clock they count as too old.
        let now = uptime().unwrap_or(u64::MAX);
        self.0.numbers()[SINCE].store(now, Ordering::Release);
    }
}

/// Seconds since the boot, suspended ones too: no clock that somebody can set.
fn uptime() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/uptime").ok()?;
    text.split(['.', ' ']).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::presence::{ChunkState, Presence};
    use super::*;

    const ROWS: usize = 130;
    const NONE: [usize; 0] = [];
    const HOUR: Duration = Duration::from_hours(1);

    fn successor(first: &Vouched, age_max: Duration) -> Vouched {
        let memory = first.as_fd().try_clone_to_owned().unwrap();
        Vouched::of(memory, age_max).unwrap()
    }

    /// A daemon's view of the layer in slot 7, of which all chunks are on the disk.
    fn presence(vouched: &Vouched, binding: Binding) -> Presence {
        let mut presence = Presence::empty(ROWS);
        (0..ROWS).for_each(|row| presence.claim(row));
        let layer = vouched.layer(7, ROWS, binding).unwrap().unwrap();
        presence.believe(Box::new(layer));
        presence
    }

    fn verified(presence: &Presence) -> Vec<usize> {
        presence
            .rows(|state| state == ChunkState::Verified)
            .collect()
    }

    fn binding(index: &str) -> (File, Binding) {
        let device = tempfile::tempfile().unwrap();
        let binding = Binding::of(index, &device).unwrap();
        (device, binding)
    }

    /// Promise: who takes over believes what was verified and is there still, and nothing that was
    /// evicted, doubted or found damaged since.
    #[test]
    fn what_was_verified_is_believed_by_the_next_daemon() {
        let first = Vouched::new(HOUR).unwrap();
        let (_device, binding) = binding("index");
        let before = presence(&first, binding);
        assert_eq!(verified(&before), NONE);
        for row in [0, 64, 129, 3, 5] {
            before.set_verified(row);
        }
        before.set_absent(3);
        before.set_claimed(5);
        drop(before);
        let second = successor(&first, HOUR);
        assert_eq!(second.name(), first.name());
        let after = presence(&second, binding);
        assert_eq!(verified(&after), [0, 64, 129]);
        (0..ROWS).for_each(|row| after.set_verified(row));
        let third = presence(&successor(&first, HOUR), binding);
        assert!(third.all_verified());
    }

    /// Promise: a chunk that is not on the disk any more is not believed, whatever the bits say.
    #[test]
    fn what_is_not_there_is_not_believed() {
        let vouched = Vouched::new(HOUR).unwrap();
        let (_device, binding) = binding("index");
        presence(&vouched, binding).set_verified(9);
        let mut punched = Presence::empty(ROWS);
        punched.claim(8);
        let layer = vouched.layer(7, ROWS, binding).unwrap().unwrap();
        punched.believe(Box::new(layer));
        assert_eq!(verified(&punched), NONE);
        let again = presence(&vouched, binding);
        assert_eq!(verified(&again), NONE, "and the bit is gone");
    }

    /// Promise: bits of another file, another index, another slot, another layout, or of a moment too
    /// long ago are not believed.
    #[test]
    fn bits_of_something_else_are_not_believed() {
        let vouched = Vouched::new(HOUR).unwrap();
        let (device, same) = binding("index");
        let set = || presence(&vouched, same).set_verified(1);
        let believed = |binding| verified(&presence(&vouched, binding));
        set();
        assert_eq!(believed(same), [1]);
        assert_eq!(believed(binding("index").1), NONE, "another file");
        set();
        assert_eq!(believed(Binding::of("other", &device).unwrap()), NONE);
        set();
        device.set_len(1).unwrap();
        assert_eq!(believed(Binding::of("index", &device).unwrap()), NONE);
        set();
        let other = vouched.layer(8, ROWS, same).unwrap().unwrap();
        assert!(other.bits().iter().all(|b| b.load(Ordering::Relaxed) == 0));
        let layer = vouched.layer(7, ROWS, same).unwrap().unwrap();
        layer.0.numbers()[FORMAT].store(VERSION + 1, Ordering::Relaxed);
        assert_eq!(believed(same), NONE, "another layout");
        set();
        assert_eq!(
            verified(&presence(&successor(&vouched, Duration::ZERO), same)),
            NONE
        );
        set();
        vouched.free(7);
        assert_eq!(believed(same), NONE);
        let short = tempfile::tempfile().unwrap();
        assert!(Vouched::of(short.into(), HOUR).is_none());
    }

    /// Promise: what is due to be verified again is due for the next daemon, too.
    #[test]
    fn what_expired_is_verified_by_the_next_daemon() {
        let vouched = Vouched::new(HOUR).unwrap();
        let (_device, binding) = binding("index");
        let before = presence(&vouched, binding);
        for row in [1, 2] {
            before.set_verified(row);
        }
        before.expire();
        before.set_verified(2);
        assert_eq!(verified(&presence(&vouched, binding)), [2]);
    }

    #[test]
    fn a_layer_of_too_many_chunks_is_left_out() {
        let vouched = Vouched::new(HOUR).unwrap();
        let (_device, binding) = binding("index");
        let fits = (usize::try_from(PER_SLOT).unwrap() / 8 - HEAD) * 64;
        let last = vouched.layer(u32::MAX, fits, binding).unwrap().unwrap();
        last.bits().last().unwrap().store(1, Ordering::Relaxed);
        assert!(vouched.layer(1, fits + 1, binding).unwrap().is_none());
    }
}
