//! The directories listed last, and how far their files have been read.

use std::collections::{HashMap, VecDeque};

use larder_proto::erofs::Nid;

use super::Batch;

/// Files remembered, in all directories together: some 50 bytes each. A walk of a tree reads what
/// it has just listed.
const FILES_MAX: usize = 8192;

/// Most bytes of one batch: what a wrong guess costs in page cache and copying.
const BATCH_BYTES_MAX: u64 = 1 << 20;

/// Directories whose files are read ahead as soon as they are listed, after files of the slot were
/// read in order. Whoever goes on reading earns as many again; whoever only lists soon stops
/// paying for it.
const CREDIT: u32 = 8;

/// Slots with credit; there are a few per container that reads.
const CREDITS_MAX: usize = 256;

/// What was listed.
#[derive(Debug, Default)]
pub(super) struct Listings {
    /// The oldest first.
    directories: VecDeque<Listing>,
    /// By slot and file: number of the listing, and place in it.
    places: HashMap<(u32, Nid), (u64, usize)>,
    /// By slot: directories still to be read ahead unasked.
    credit: HashMap<u32, u32>,
    next_number: u64,
}

/// The small files of one directory, in the order of its entries.
#[derive(Debug)]
struct Listing {
    number: u64,
    slot: u32,
    directory: Nid,
    files: Vec<(Nid, u64)>,
    /// Files before this one were read, or asked for.
    next: usize,
    /// Files read one after the other, up to the one before `next`.
    run: usize,
}

impl Listings {
    /// Takes in a part of a directory.
    pub(super) fn add(
        &mut self,
        slot: u32,
        directory: Nid,
        is_first: bool,
        files: impl Iterator<Item = (Nid, u64)>,
    ) {
        if is_first {
            self.begin(slot, directory);
        }
        let Some(listing) = find(&mut self.directories, slot, directory) else {
            return;
        };
        for (file, size) in files.take(FILES_MAX.saturating_sub(listing.files.len())) {
            let place = (listing.number, listing.files.len());
            self.places.insert((slot, file), place);
            listing.files.push((file, size));
        }
        while self.places.len() > FILES_MAX && self.directories.len() > 1 {
            self.forget(0);
        }
    }

    /// A directory was listed to its end: its files, if reading them is expected.
    pub(super) fn ended(&mut self, slot: u32, directory: Nid) -> Option<Batch> {
        let credit = self.credit.get_mut(&slot)?;
        let listing = find(&mut self.directories, slot, directory)?;
        let batch = listing.ask()?;
        *credit -= 1;
        if *credit == 0 {
            self.credit.remove(&slot);
        }
        Some(batch)
    }

    /// A file was read: the following ones, if it follows the one read before it.
    pub(super) fn read(&mut self, slot: u32, file: Nid) -> Option<Batch> {
        let &(number, place) = self.places.get(&(slot, file))?;
        let listing = self.directories.iter_mut().find(|l| l.number == number)?;
        if place < listing.next {
            return None;
        }
        listing.run = if place == listing.next {
            listing.run + 1
        } else {
            1
        };
        listing.next = place + 1;
        if listing.run < 2 {
            return None;
        }
        let batch = listing.ask();
        if self.credit.len() >= CREDITS_MAX {
            self.credit.clear();
        }
        self.credit.insert(slot, CREDIT);
        batch
    }

    fn begin(&mut self, slot: u32, directory: Nid) {
        let mut known = self.directories.iter();
        if let Some(at) = known.position(|l| l.slot == slot && l.directory == directory) {
            self.forget(at);
        }
        // A directory without small files has no place in the other table, yet counts.
        while self.directories.len() >= FILES_MAX {
            self.forget(0);
        }
        self.directories.push_back(Listing {
            number: self.next_number,
            slot,
            directory,
            files: Vec::new(),
            next: 0,
            run: 0,
        });
        self.next_number += 1;
    }

    fn forget(&mut self, at: usize) {
        let Some(listing) = self.directories.remove(at) else {
            return;
        };
        for (file, _) in listing.files {
            // A file with several names may belong to a later listing by now.
            let key = (listing.slot, file);
            if self
                .places
                .get(&key)
                .is_some_and(|place| place.0 == listing.number)
            {
                self.places.remove(&key);
            }
        }
    }
}

impl Listing {
    /// The next files, as many as a batch holds.
    fn ask(&mut self) -> Option<Batch> {
        let mut bytes = 0;
        let rest = self.files.get(self.next..)?.iter();
        let fits = rest.take_while(|&&(_, size)| {
            bytes += size;
            bytes <= BATCH_BYTES_MAX
        });
        let files: Vec<Nid> = fits.map(|&(file, _)| file).collect();
        self.next += files.len();
        let slot = self.slot;
        (!files.is_empty()).then_some(Batch { slot, files })
    }
}

/// The newest first: it is almost always the one that is asked for.
fn find(directories: &mut VecDeque<Listing>, slot: u32, directory: Nid) -> Option<&mut Listing> {
    let mut newest_first = directories.iter_mut().rev();
    newest_first.find(|l| l.slot == slot && l.directory == directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: u32 = 3;
    const NOTHING: [u64; 0] = [];

    fn list(listings: &mut Listings, directory: u64, files: std::ops::Range<u64>) {
        let files = files.map(|file| (Nid(file), 1000));
        listings.add(SLOT, Nid(directory), true, files);
    }

    fn asked(batch: Option<Batch>) -> Vec<u64> {
        batch.map_or(Vec::new(), |batch| {
            assert_eq!(batch.slot, SLOT);
            batch.files.iter().map(|file| file.0).collect()
        })
    }

    #[test]
    fn files_read_in_order_bring_the_rest_of_their_directory() {
        let mut listings = Listings::default();
        list(&mut listings, 1, 10..16);
        assert_eq!(asked(listings.ended(SLOT, Nid(1))), NOTHING);
        assert_eq!(asked(listings.read(SLOT, Nid(10))), NOTHING);
        assert_eq!(asked(listings.read(SLOT, Nid(11))), [12, 13, 14, 15]);
        // A read that crossed the batch on its way changes nothing.
        assert_eq!(asked(listings.read(SLOT, Nid(12))), NOTHING);
        list(&mut listings, 2, 20..22);
        assert_eq!(asked(listings.ended(SLOT, Nid(2))), [20, 21]);
        assert_eq!(asked(listings.ended(SLOT, Nid(2))), NOTHING);
    }

    #[test]
    fn files_read_out_of_order_bring_nothing() {
        let mut listings = Listings::default();
        list(&mut listings, 1, 10..20);
        for file in [19, 10, 12, 14, 16, 18, 99] {
            assert_eq!(asked(listings.read(SLOT, Nid(file))), NOTHING);
        }
        assert_eq!(asked(listings.read(SLOT + 1, Nid(10))), NOTHING);
    }

    #[test]
    fn who_only_lists_is_read_ahead_for_eight_directories() {
        let mut listings = Listings::default();
        list(&mut listings, 1, 10..12);
        listings.read(SLOT, Nid(10));
        listings.read(SLOT, Nid(11));
        let mut served = 0;
        for directory in 100..200 {
            list(&mut listings, directory, directory * 10..directory * 10 + 2);
            served += u32::from(listings.ended(SLOT, Nid(directory)).is_some());
        }
        assert_eq!(served, CREDIT);
    }

    #[test]
    fn batches_and_memory_are_bounded() {
        let mut listings = Listings::default();
        let large = (0..100).map(|file| (Nid(file), 100_000));
        listings.add(SLOT, Nid(1), true, large);
        listings.read(SLOT, Nid(0));
        assert_eq!(asked(listings.read(SLOT, Nid(1))).len(), 10);
        assert_eq!(asked(listings.read(SLOT, Nid(12))).len(), 10);
        for directory in 0..300 {
            list(
                &mut listings,
                1000 + directory,
                directory * 100..directory * 100 + 100,
            );
        }
        assert!(listings.places.len() <= FILES_MAX);
        assert!(listings.directories.len() <= FILES_MAX / 100 + 1);
        list(&mut listings, 5000, 0..1_000_000);
        assert!(listings.places.len() <= FILES_MAX);
    }
}
