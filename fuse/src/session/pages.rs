//! Pages of devices that the kernel is asked to give back.
//!
//! EROFS reads a device through the page cache, and has what it read as its own pages, too. The kernel waits for
//! pages that are being read, hence for the network at times. So a thread of its own asks, beside that of the
//! other notices, and nobody waits for it.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{SyncSender, sync_channel};

use super::inode::Node;
use super::notices::forget_pages;
use crate::sys::{page_size, spawn_with_only};

/// Devices whose pages wait to be given back, with their ranges: those of all layers of a large node, once. What is more,
/// while the kernel waits for a page, keeps its pages.
const WAITING_MAX: usize = 1024;

/// Asks for pages; ends with the session.
#[derive(Debug)]
pub(super) struct Pages(SyncSender<(u64, Vec<Range<u64>>)>);

impl Pages {
    /// Starts the thread.
    pub(super) fn of(device: OwnedFd) -> io::Result<Self> {
        let (sender, given) = sync_channel::<(u64, Vec<Range<u64>>)>(WAITING_MAX);
        spawn_with_only("larder-pages", device, move |device| {
            for (node, ranges) in given {
                let mut ranges = ranges.iter().filter_map(inner_pages);
                // A device that nobody has open has no pages: the first answer tells.
                if let Some(error) =
                    ranges.find_map(|range| forget_pages(&device, node, &range).err())
                    && error.kind() != io::ErrorKind::NotFound
                {
                    tracing::debug!(%error, "the kernel keeps pages of a device");
                }
            }
        })?;
        Ok(Self(sender))
    }

    /// Has the kernel give back what lies in `ranges` of the device in a slot. Never waits.
    pub(super) fn give_back(&self, slot: u32, ranges: Vec<Range<u64>>) {
        if !ranges.is_empty() {
            // Memory that the kernel takes when it needs it.
            let _ = self.0.try_send((Node::Device(slot).number(), ranges));
        }
    }
}

/// The pages that lie in a range as a whole: what shares one with it may be waited for.
fn inner_pages(range: &Range<u64>) -> Option<Range<u64>> {
    let page = page_size();
    let pages = range.start.next_multiple_of(page)..range.end / page * page;
    (!pages.is_empty()).then_some(pages)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: of no page is more given back than what nobody waits for; what is smaller than a page keeps it.
    #[test]
    fn pages_that_reach_beyond_stay() {
        let page = page_size();
        let pages = |range: Range<u64>| inner_pages(&range);
        assert_eq!(pages(512..3 * page), Some(page..3 * page));
        assert_eq!(pages(page..2 * page + 512), Some(page..2 * page));
        assert_eq!(pages(512..page + 512), None);
        assert_eq!(pages(512..page - 512), None);
    }
}
