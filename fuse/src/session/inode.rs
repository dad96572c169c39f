//! Inode numbers of the session.

use larder_proto::erofs::Nid;

const ROOT: u64 = 1;
const DEVICES: u64 = 2;
const TREES: u64 = 3;

/// Bits of an inode number that tell the EROFS inode within its slot: an image has at most
/// `INDEX_BYTES_MAX / 32` inode places, well below 2^32. Slot 0 is never given out, so the three
/// directories above cannot be mistaken for a file.
const NID_BITS: u32 = 32;

/// What an inode number stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Node {
    /// The root of the session.
    Root,
    /// Its directory `dev`.
    Devices,
    /// Its directory `tree`.
    Trees,
    /// The device in a slot.
    Device(u32),
    /// A file of the tree in a slot.
    File(u32, Nid),
}

impl Node {
    pub(super) fn number(self) -> u64 {
        match self {
            Self::Root => ROOT,
            Self::Devices => DEVICES,
            Self::Trees => TREES,
            Self::Device(slot) => u64::from(slot) << NID_BITS,
            Self::File(slot, nid) => u64::from(slot) << NID_BITS | nid.0,
        }
    }

    pub(super) fn of(number: u64) -> Option<Self> {
        let nid = number & ((1 << NID_BITS) - 1);
        match (u32::try_from(number >> NID_BITS).ok()?, nid) {
            (0, ROOT) => Some(Self::Root),
            (0, DEVICES) => Some(Self::Devices),
            (0, TREES) => Some(Self::Trees),
            (0, _) => None,
            (slot, 0) => Some(Self::Device(slot)),
            (slot, nid) => Some(Self::File(slot, Nid(nid))),
        }
    }

    /// The slot whose content the node belongs to.
    pub(super) fn slot(self) -> Option<u32> {
        match self {
            Self::Device(slot) | Self::File(slot, _) => Some(slot),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_survives_its_number() {
        for node in [
            Node::Root,
            Node::Devices,
            Node::Trees,
            Node::Device(1),
            Node::Device(u32::MAX),
            Node::File(1, Nid(1)),
            Node::File(u32::MAX, Nid(u64::from(u32::MAX))),
        ] {
            assert_eq!(Node::of(node.number()), Some(node));
        }
        assert_eq!(Node::of(0), None);
        assert_eq!(Node::of(4), None);
    }
}
