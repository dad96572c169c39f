//! Requests being served, in memory that outlives the daemon: for kernels that cannot send them again.
//!
//! Each request is written down when it is begun and crossed out when it is answered; the next daemon
//! answers what is left. Between the kernel's handing a request over and its entry here lie the few
//! microseconds in which fuser takes it apart: what a kill meets there nobody answers.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::sys::SharedNumbers;

/// Requests under way at once: as many as the kernel may have waiting in the background, which is what
/// readers of missing chunks do. Further ones are served and not written down.
const ENTRIES: usize = 1 << 16;

/// Longest name in a request, bytes: that of a file or of an extended attribute.
const NAME_MAX: usize = 255;

/// Numbers before the name: request, operation and length, inode, offset.
const FIXED: usize = 4;

/// Numbers of an entry. All entries are 18 MiB, of which only what was used takes memory.
const PER_ENTRY: usize = FIXED + NAME_MAX.div_ceil(8);

/// A request: what it takes to answer it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Begun {
    /// The kernel's number of it.
    pub(super) unique: u64,
    /// What is to be done, by the number of the protocol.
    pub(super) operation: u32,
    pub(super) inode: u64,
    pub(super) offset: u64,
    /// Bytes wanted.
    pub(super) len: u32,
    /// Of what is looked up, if anything.
    pub(super) name: Vec<u8>,
}

/// The requests of one session.
#[derive(Debug)]
pub(super) struct Journal {
    memory: SharedNumbers,
    free: Mutex<Vec<usize>>,
}

/// A request that is written down; crossed out when this is dropped, which is to be after the reply.
#[derive(Debug)]
pub(super) struct Entry {
    journal: Arc<Journal>,
    at: usize,
}

impl Journal {
    /// An empty one.
    pub(super) fn new() -> io::Result<Self> {
        SharedNumbers::new("larder-journal", ENTRIES * PER_ENTRY).map(Self::in_memory)
    }

    /// That of a daemon before.
    pub(super) fn of(memory: OwnedFd) -> io::Result<Self> {
        SharedNumbers::of(File::from(memory), ENTRIES * PER_ENTRY).map(Self::in_memory)
    }

    fn in_memory(memory: SharedNumbers) -> Self {
        let journal = Self {
            memory,
            free: Mutex::default(),
        };
        let is_free = |at: &usize| journal.unique(*at).load(Ordering::Acquire) == 0;
        // The first ones last, to be taken first: their memory is there already.
        let free = (0..ENTRIES).rev().filter(is_free).collect();
        *journal.free.lock().unwrap_or_else(PoisonError::into_inner) = free;
        journal
    }

    /// Writes a request down; `None` when there is no room.
    pub(super) fn begin(self: &Arc<Self>, begun: &Begun) -> Option<Entry> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let at = free.pop()?;
        drop(free);
        let numbers = self.numbers(at);
        let name = &begun.name[..begun.name.len().min(NAME_MAX)];
        let sizes = (u64::from(begun.len) << 32) | (name.len() as u64) << 16;
        numbers[1].store(sizes | u64::from(begun.operation), Ordering::Relaxed);
        numbers[2].store(begun.inode, Ordering::Relaxed);
        numbers[3].store(begun.offset, Ordering::Relaxed);
        for (number, bytes) in numbers[FIXED..].iter().zip(name.chunks(8)) {
            let mut eight = [0; 8];
            eight[..bytes.len()].copy_from_slice(bytes);
            number.store(u64::from_le_bytes(eight), Ordering::Relaxed);
        }
        // Last: what is written down half is not written down.
        numbers[0].store(begun.unique, Ordering::Release);
        Some(Entry {
            journal: Arc::clone(self),
            at,
        })
    }

    /// What a daemon before began and did not answer. Only before anything is begun here.
    pub(super) fn left(self: &Arc<Self>) -> Vec<(Begun, Entry)> {
        let begun = |at| {
            let numbers = self.numbers(at);
            let unique = numbers[0].load(Ordering::Acquire);
            let sizes = numbers[1].load(Ordering::Relaxed);
            let name_len = usize::try_from(sizes >> 16 & 0xffff).unwrap_or(0);
            let name = numbers[FIXED..].iter();
            let name = name.flat_map(|number| number.load(Ordering::Relaxed).to_le_bytes());
            let begun = Begun {
                unique,
                operation: u32::try_from(sizes & 0xffff).unwrap_or(0),
                inode: numbers[2].load(Ordering::Relaxed),
                offset: numbers[3].load(Ordering::Relaxed),
                len: u32::try_from(sizes >> 32).unwrap_or(0),
                name: name.take(name_len.min(NAME_MAX)).collect(),
            };
            let entry = Entry {
                journal: Arc::clone(self),
                at,
            };
            (unique != 0).then_some((begun, entry))
        };
        (0..ENTRIES).filter_map(begun).collect()
    }

    fn unique(&self, at: usize) -> &AtomicU64 {
        &self.numbers(at)[0]
    }

    fn numbers(&self, at: usize) -> &[AtomicU64] {
        &self.memory.numbers()[at * PER_ENTRY..(at + 1) * PER_ENTRY]
    }
}

impl AsFd for Journal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.journal.unique(self.at).store(0, Ordering::Release);
        let mut free = self
            .journal
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        free.push(self.at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(unique: u64, name: &[u8]) -> Begun {
        Begun {
            unique,
            operation: 15,
            inode: u64::MAX - unique,
            offset: 1 << 40,
            len: u32::MAX,
            name: name.to_vec(),
        }
    }

    /// Promise: what was begun and not answered is there for the next daemon, whole; and nothing else.
    #[test]
    fn what_was_not_answered_is_left_to_the_next_daemon() {
        let first = Arc::new(Journal::new().unwrap());
        let requests = [
            request(1, b""),
            request(3, &[b'x'; NAME_MAX]),
            request(5, b"a name"),
        ];
        let mut entries: Vec<_> = requests.iter().map(|r| first.begin(r).unwrap()).collect();
        drop(entries.remove(0));
        let memory = first.as_fd().try_clone_to_owned().unwrap();
        // The daemon is killed: nothing is crossed out.
        std::mem::forget(entries);
        let second = Arc::new(Journal::of(memory).unwrap());
        let mut left = second.left();
        left.sort_by_key(|(begun, _)| begun.unique);
        let found: Vec<_> = left.iter().map(|(begun, _)| begun.clone()).collect();
        assert_eq!(found, requests[1..]);
        drop(left);
        assert!(second.left().is_empty());
    }

    #[test]
    fn a_full_journal_refuses_and_recovers() {
        let journal = Arc::new(Journal::new().unwrap());
        let entries: Vec<_> = (1..)
            .map_while(|n| journal.begin(&request(n, b"")))
            .collect();
        assert_eq!(entries.len(), ENTRIES);
        drop(entries);
        assert!(journal.begin(&request(1, b"")).is_some());
    }
}
