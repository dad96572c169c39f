//! Small files read ahead of their readers, and directories listed ahead of who walks a tree.
//!
//! The kernel reads ahead within a file; a tree of small files costs it a request for each. When
//! the files of a directory are read one after the other, the following ones are put into the page
//! cache unasked, if their bytes are in the store. A directory costs it two requests, one after the
//! other, each a wait; when directories are listed in the order of a walk, the following ones
//! are listed from here, beside the walker. `docs/adr/0006-fuse-tree-requests.md` has the figures.
//!
//! All of it is a guess: whatever is forgotten, dropped or refused here is read in the ordinary
//! way.

mod listings;
mod visits;
mod walks;

use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use larder_proto::erofs::{Image, Nid};

use super::inode::Node;
use super::notices::Notices;
use super::slots::{Content, Slot, Slots};
use crate::sys::Mapping;
use listings::Listings;
use walks::{Visit, Walks};

/// Largest file read ahead, bytes: what the kernel asks for in one request at its default
/// read-ahead. In larger files its own read-ahead works.
const FILE_BYTES_MAX: u64 = 128 << 10;

/// Batches waiting for the thread. It handles one within milliseconds; what comes when it does not
/// keep up is dropped.
const BATCHES_MAX: usize = 16;

/// Visits waiting for their thread: one waits while another is being made, further ones are stale.
const VISITS_MAX: usize = 1;

/// Files of one slot to be put into the page cache.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Batch {
    slot: u32,
    files: Vec<Nid>,
}

/// Watches what is listed and read, and asks for what comes next. Never waits.
#[derive(Debug)]
pub(super) struct Ahead {
    listings: Mutex<Listings>,
    batches: SyncSender<Batch>,
    walks: Mutex<Walks>,
    visits: SyncSender<Visit>,
}

/// What was asked for, for the threads that do it.
#[derive(Debug)]
pub(super) struct Asked {
    batches: Receiver<Batch>,
    visits: Receiver<Visit>,
}

impl Ahead {
    /// With the other end for [`Asked::serve`].
    pub(super) fn new() -> (Self, Asked) {
        let (batches, batches_in) = sync_channel(BATCHES_MAX);
        let (visits, visits_in) = sync_channel(VISITS_MAX);
        let ahead = Self {
            listings: Mutex::default(),
            batches,
            walks: Mutex::default(),
            visits,
        };
        let asked = Asked {
            batches: batches_in,
            visits: visits_in,
        };
        (ahead, asked)
    }

    /// The kernel was told a part of a directory: of its files, those that are regular, with their
    /// sizes. `is_first` begins the directory anew.
    pub(super) fn listed(
        &self,
        slot: u32,
        directory: Nid,
        is_first: bool,
        files: impl Iterator<Item = (Nid, u64)>,
    ) {
        let small = files.filter(|&(_, size)| (1..=FILE_BYTES_MAX).contains(&size));
        let mut listings = self.listings.lock().unwrap_or_else(PoisonError::into_inner);
        listings.add(slot, directory, is_first, small);
    }

    /// The kernel was told that a directory has no more entries, and knows all of its files.
    pub(super) fn listed_all(&self, slot: u32, directory: Nid, image: &Image<Mapping>) {
        self.ask(|listings| listings.ended(slot, directory));
        let mut walks = self.walks.lock().unwrap_or_else(PoisonError::into_inner);
        let visit = walks.listed(slot, directory, image);
        drop(walks);
        if let Some(visit) = visit {
            let _ = self.visits.try_send(visit);
        }
    }

    /// The kernel asked for the beginning of a file.
    pub(super) fn read(&self, slot: u32, file: Nid) {
        self.ask(|listings| listings.read(slot, file));
    }

    fn ask(&self, what: impl FnOnce(&mut Listings) -> Option<Batch>) {
        let mut listings = self.listings.lock().unwrap_or_else(PoisonError::into_inner);
        let batch = what(&mut listings);
        drop(listings);
        if let Some(batch) = batch {
            let _ = self.batches.try_send(batch);
        }
    }
}

impl Asked {
    /// Starts the threads; they end with the session, whose mount is at `session`.
    pub(super) fn serve(
        self,
        session: &Path,
        slots: Arc<Slots>,
        notices: Notices,
    ) -> io::Result<()> {
        let Self { batches, visits } = self;
        let thread = |name: &str| std::thread::Builder::new().name(name.into());
        let session = session.to_owned();
        thread("larder-ahead").spawn(move || run(&batches, &slots, &notices))?;
        thread("larder-visit").spawn(move || visits::run(&visits, &session))?;
        Ok(())
    }
}

/// Puts batches into the page cache until the session ends. For a thread of its own: it waits for the
/// kernel.
fn run(batches: &Receiver<Batch>, slots: &Slots, notices: &Notices) {
    for batch in batches {
        let Some(slot) = slots.get(batch.slot) else {
            continue;
        };
        for file in batch.files {
            let stored = store(&slot, batch.slot, file, notices);
            if let Err(error) = stored {
                tracing::debug!(slot = batch.slot, file = file.0, %error, "not read ahead");
            }
        }
    }
}

fn store(slot: &Arc<Slot>, number: u32, file: Nid, notices: &Notices) -> io::Result<()> {
    let Content::Layer { fetcher, image } = &slot.content else {
        return Ok(());
    };
    let Some(inode) = image.inode(file) else {
        return Ok(());
    };
    let layer = fetcher.layer();
    // A small file with holes is not worth the trouble.
    let Some(extent) = image.extents(file).next().filter(|e| e.len == inode.size) else {
        return Ok(());
    };
    let end = extent.tar_offset + extent.len;
    if extent.len > FILE_BYTES_MAX {
        return Ok(());
    }
    let rows = layer.index().rows(extent.tar_offset..end);
    let mut bytes = vec![0; usize::try_from(extent.len).map_err(io::Error::other)?];
    let is_there = layer.read_there(rows, |device| {
        device.read(&mut bytes, extent.tar_offset);
        Ok(())
    })?;
    if is_there {
        // As what the kernel itself reads ahead.
        fetcher
            .listeners()
            .read(layer.index().rows(extent.tar_offset..end));
        notices.store(Node::File(number, file).number(), bytes);
    }
    Ok(())
}
