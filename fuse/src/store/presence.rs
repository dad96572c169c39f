//! Which chunks of a layer the store has.

use std::fmt;
// In memory that other processes have, too: not of those that a model checker exchanges.
use std::sync::atomic::AtomicU64 as SharedWord;

use super::bits;
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// The bits of the chunks that may be there.
const PRESENT: [u8; 8] = *b"LARDERPR";

/// Those of the chunks that were there for sure. It belongs to one file of the other kind.
const KNOWN: [u8; 8] = *b"LARDERKN";

/// What is known about a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChunkState {
    /// Not there.
    Absent,
    /// A former run of the daemon said it is there: to be verified before it is used.
    Claimed,
    /// Its digest was checked in this run, or by a daemon before in this boot.
    Verified,
}

/// Bits that outlive the daemon, one per chunk: it was verified in this boot, and is there.
pub(crate) trait Outliving: fmt::Debug + Send + Sync {
    /// The bits, at least one for each chunk.
    fn bits(&self) -> &[SharedWord];

    /// All of them were just cleared: what is set from now on is younger.
    fn begun_anew(&self);
}

/// Four bits per chunk. Bits are set after the bytes they speak of are in the file.
#[derive(Debug)]
pub(crate) struct Presence {
    rows: usize,
    verified: Box<[AtomicU64]>,
    claimed: Box<[AtomicU64]>,
    /// Claimed, and nobody knows that all of it ever was there: if it is wrong, that is no damage.
    guessed: Box<[AtomicU64]>,
    /// Verified so long ago, or doubted since, that it is done again before the next use.
    stale: Box<[AtomicU64]>,
    verified_count: AtomicUsize,
    dirty: AtomicBool,
    /// What the next daemon may believe. A bit is cleared there first and set there last.
    outliving: Option<Box<dyn Outliving>>,
}

impl Presence {
    /// Nothing is there.
    pub(crate) fn empty(rows: usize) -> Self {
        let words = || (0..rows.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self {
            rows,
            verified: words(),
            claimed: words(),
            guessed: words(),
            stale: words(),
            verified_count: AtomicUsize::new(0),
            dirty: AtomicBool::new(false),
            outliving: None,
        }
    }

    /// Believes what a daemon before verified of the chunks that are claimed, and keeps what is
    /// verified from now on for the next one.
    pub(crate) fn believe(&mut self, outliving: Box<dyn Outliving>) {
        let claimed: Vec<_> = self.rows(|state| state == ChunkState::Claimed).collect();
        let is_set = |row: &usize| {
            let word = outliving.bits().get(row / 64);
            word.is_some_and(|word| word.load(Ordering::Acquire) & (1 << (row % 64)) != 0)
        };
        let was_verified: Vec<_> = claimed.into_iter().filter(is_set).collect();
        // Whatever else is set speaks of chunks that are not there any more.
        for word in outliving.bits() {
            word.store(0, Ordering::Release);
        }
        self.outliving = Some(outliving);
        for row in was_verified {
            self.set_verified(row);
        }
    }

    /// Reads what [`Presence::encode`] wrote; `None` if it is damaged. All of it is guessed until
    /// [`Presence::know`].
    pub(crate) fn decode(bytes: &[u8], rows: usize) -> Option<Self> {
        let words = bits::decode(PRESENT, rows, bytes, &[])?;
        let presence = Self::empty(rows);
        let both = presence.claimed.iter().zip(&presence.guessed);
        for ((claimed, guessed), bits) in both.zip(words) {
            claimed.store(bits, Ordering::Relaxed);
            guessed.store(bits, Ordering::Relaxed);
        }
        Some(presence)
    }

    /// The bits as they go to disk. The caller has made the chunks they speak of durable.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let words = self.verified.iter().zip(&self.claimed);
        let words = words.map(|(verified, claimed)| {
            verified.load(Ordering::Acquire) | claimed.load(Ordering::Acquire)
        });
        bits::encode(PRESENT, self.rows, words, &[])
    }

    /// Which of the chunks in `present`, the bits as they were encoded a moment ago, are no guesses.
    pub(crate) fn encode_known(&self, present: &[u8]) -> Vec<u8> {
        let there = self.verified.iter().zip(&self.claimed);
        let words = there
            .zip(&self.guessed)
            .map(|((verified, claimed), guessed)| {
                let there = verified.load(Ordering::Acquire) | claimed.load(Ordering::Acquire);
                there & !guessed.load(Ordering::Acquire)
            });
        bits::encode(KNOWN, self.rows, words, bits::sum(present))
    }

    /// Takes what [`Presence::encode_known`] wrote: those chunks are no guesses. False if it is damaged, or does
    /// not belong to `present`.
    pub(crate) fn know(&self, known: &[u8], present: &[u8]) -> bool {
        let Some(words) = bits::decode(KNOWN, self.rows, known, bits::sum(present)) else {
            return false;
        };
        for (guessed, known) in self.guessed.iter().zip(words) {
            guessed.fetch_and(!known, Ordering::AcqRel);
        }
        true
    }

    /// Whether it is only a guess that the chunk is there whole: a daemon that was killed may have written a part
    /// of it, and nobody verified it since.
    pub(crate) fn is_guessed(&self, row: usize) -> bool {
        let word = self.guessed.get(row / 64);
        word.is_some_and(|word| word.load(Ordering::Acquire) & (1 << (row % 64)) != 0)
    }

    pub(crate) fn state(&self, row: usize) -> ChunkState {
        let bit = 1 << (row % 64);
        let is_set = |words: &[AtomicU64]| {
            words.get(row / 64).map_or(0, |w| w.load(Ordering::Acquire)) & bit != 0
        };
        if is_set(&self.verified) {
            if is_set(&self.stale) {
                ChunkState::Claimed
            } else {
                ChunkState::Verified
            }
        } else if is_set(&self.claimed) {
            ChunkState::Claimed
        } else {
            ChunkState::Absent
        }
    }

    /// Whether a chunk was verified, however long ago.
    pub(crate) fn was_verified(&self, row: usize) -> bool {
        let word = self.verified.get(row / 64);
        word.is_some_and(|word| word.load(Ordering::Acquire) & (1 << (row % 64)) != 0)
    }

    pub(crate) fn set_verified(&self, row: usize) {
        if let (Some(word), Some(stale)) = (self.verified.get(row / 64), self.stale.get(row / 64)) {
            let bit = 1 << (row % 64);
            stale.fetch_and(!bit, Ordering::AcqRel);
            if let Some(guessed) = self.guessed.get(row / 64) {
                guessed.fetch_and(!bit, Ordering::AcqRel);
            }
            if word.fetch_or(bit, Ordering::AcqRel) & bit == 0 {
                self.verified_count.fetch_add(1, Ordering::AcqRel);
                self.dirty.store(true, Ordering::Release);
            }
            if let Some(word) = self.outliving_word(row) {
                word.fetch_or(bit, Ordering::AcqRel);
                // Nothing is locked: what was taken back meanwhile is not to be believed.
                if self.state(row) != ChunkState::Verified {
                    self.withdraw(row);
                }
            }
        }
    }

    fn outliving_word(&self, row: usize) -> Option<&SharedWord> {
        self.outliving.as_ref()?.bits().get(row / 64)
    }

    /// The next daemon is to verify the chunk itself.
    fn withdraw(&self, row: usize) {
        if let Some(word) = self.outliving_word(row) {
            word.fetch_and(!(1 << (row % 64)), Ordering::AcqRel);
        }
    }

    /// A chunk may be there, whatever the bits on the disk say.
    pub(crate) fn claim(&self, row: usize) {
        if let (Some(word), Some(guessed)) =
            (self.claimed.get(row / 64), self.guessed.get(row / 64))
        {
            guessed.fetch_or(1 << (row % 64), Ordering::AcqRel);
            word.fetch_or(1 << (row % 64), Ordering::AcqRel);
            // To be written down too: after an orderly end nobody looks for it again.
            self.mark_dirty();
        }
    }

    /// A chunk that was verified is to be verified again; it counts as there meanwhile.
    ///
    /// One step, since nothing is locked: in two, a chunk that is evicted between them would be claimed,
    /// and its hole be called damage.
    pub(crate) fn set_claimed(&self, row: usize) {
        self.withdraw(row);
        if let Some(stale) = self.stale.get(row / 64) {
            stale.fetch_or(1 << (row % 64), Ordering::AcqRel);
            // Again: who verified it before may have set the bit meanwhile.
            self.withdraw(row);
        }
    }

    /// Every chunk is to be verified again before its next use: a disk may have changed it.
    pub(crate) fn expire(&self) {
        if let Some(outliving) = &self.outliving {
            for word in outliving.bits() {
                word.store(0, Ordering::Release);
            }
            outliving.begun_anew();
        }
        for (verified, stale) in self.verified.iter().zip(&self.stale) {
            stale.fetch_or(verified.load(Ordering::Acquire), Ordering::AcqRel);
        }
    }

    /// Forgets a chunk that turned out damaged.
    pub(crate) fn set_absent(&self, row: usize) {
        self.withdraw(row);
        let bit = 1 << (row % 64);
        if let (Some(verified), Some(claimed)) =
            (self.verified.get(row / 64), self.claimed.get(row / 64))
        {
            claimed.fetch_and(!bit, Ordering::AcqRel);
            if verified.fetch_and(!bit, Ordering::AcqRel) & bit != 0 {
                self.verified_count.fetch_sub(1, Ordering::AcqRel);
            }
        }
        // Again: who verified it before may have set the bit meanwhile.
        self.withdraw(row);
        self.dirty.store(true, Ordering::Release);
    }

    /// Whether the bits changed since the last call.
    pub(crate) fn take_dirty(&self) -> bool {
        self.dirty.swap(false, Ordering::AcqRel)
    }

    /// Puts the mark back, after the bits could not be written.
    pub(crate) fn mark_dirty(&self) {
        self.dirty.store(true, Ordering::Release);
    }

    /// The rows in a state that satisfies `wanted`.
    pub(crate) fn rows(&self, wanted: impl Fn(ChunkState) -> bool) -> impl Iterator<Item = usize> {
        (0..self.rows).filter(move |&row| wanted(self.state(row)))
    }

    /// Whether every chunk was verified in this run, or by a daemon before in this boot.
    pub(crate) fn all_verified(&self) -> bool {
        self.verified_count.load(Ordering::Acquire) == self.rows
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use super::*;

    #[test]
    fn verified_chunks_are_claims_after_a_restart() {
        let presence = Presence::empty(130);
        presence.set_verified(0);
        presence.set_verified(129);
        presence.set_verified(64);
        presence.set_absent(64);
        let again = Presence::decode(&presence.encode(), 130).unwrap();
        let claimed: Vec<_> = again.rows(|s| s == ChunkState::Claimed).collect();
        assert_eq!(claimed, [0, 129]);
        assert!(!again.all_verified());
    }

    /// Promise: what was guessed and never verified is a guess for the next run, too, and what was verified is
    /// known; of bits that do not belong together, or are damaged, nothing is known.
    #[test]
    fn a_guess_stays_one_until_it_is_verified() {
        let presence = Presence::empty(130);
        for row in [0, 64, 129] {
            presence.claim(row);
        }
        presence.set_verified(64);
        presence.set_verified(65);
        let present = presence.encode();
        let known = presence.encode_known(&present);
        let guessed = |presence: &Presence| {
            let there = presence.rows(|state| state != ChunkState::Absent);
            there
                .filter(|&row| presence.is_guessed(row))
                .collect::<Vec<_>>()
        };
        let again = Presence::decode(&present, 130).unwrap();
        assert_eq!(guessed(&again), [0, 64, 65, 129]);
        assert!(again.know(&known, &present));
        assert_eq!(guessed(&again), [0, 129]);
        again.set_absent(65);
        again.claim(65);
        again.claim(66);
        assert_eq!(guessed(&again), [0, 65, 66, 129]);
        let other = again.encode();
        let again = Presence::decode(&other, 130).unwrap();
        assert!(!again.know(&known, &other), "they belong to other bits");
        for bit in 0..known.len() * 8 {
            let mut bad = known.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!again.know(&bad, &present), "bit {bit}");
        }
        assert_eq!(guessed(&again), [0, 64, 65, 66, 129]);
    }

    /// Promise: what was verified long ago is verified again before it is used, and counts as there
    /// all the while.
    #[test]
    fn what_was_verified_long_ago_is_a_claim_again() {
        let presence = Presence::empty(70);
        (0..70).for_each(|row| presence.set_verified(row));
        presence.expire();
        assert!(presence.rows(|s| s == ChunkState::Claimed).eq(0..70));
        assert!(presence.all_verified());
        presence.set_verified(69);
        assert_eq!(presence.state(69), ChunkState::Verified);
        presence.set_absent(3);
        assert_eq!(presence.state(3), ChunkState::Absent);
        presence.set_verified(3);
        assert_eq!(presence.state(3), ChunkState::Verified);
    }

    #[test]
    fn a_damaged_file_claims_nothing() {
        let presence = Presence::empty(100);
        presence.set_verified(3);
        let good = presence.encode();
        assert!(Presence::decode(&good, 100).is_some());
        for cut in 0..good.len() {
            assert!(Presence::decode(&good[..cut], 100).is_none(), "{cut} bytes");
        }
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Presence::decode(&bad, 100).is_none(), "bit {bit}");
        }
        assert!(Presence::decode(&good, 101).is_none());
    }
}
