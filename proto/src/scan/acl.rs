//! POSIX access control lists, as the kernel stores, inherits and changes them.
//!
//! A list is an extended attribute, but the kernel reads it: it refuses malformed lists, stores
//! none where the mode says as much, lets `chmod` change some of its entries, and gives new files
//! the default list of their directory.

use std::collections::BTreeMap;

/// Attribute with the list that governs access to a file.
pub(super) const ACCESS: &[u8] = b"system.posix_acl_access";

/// Attribute of a directory with the list that new entries begin with.
pub(super) const DEFAULT: &[u8] = b"system.posix_acl_default";

const OWNER: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OWNER: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// Version in front of the entries.
const VERSION: u32 = 2;

/// The id of entries that name nobody.
const NOBODY: u32 = u32::MAX;

/// Extended attributes by name.
type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// What the kernel makes of an attribute value.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// Takes the list away.
    Nothing,
    /// Another version: not supported here, so containerd goes on without it.
    OtherVersion,
    /// A sound list.
    List(List),
    /// An invalid argument.
    Malformed,
}

/// A sound list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct List(Vec<Entry>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    tag: u16,
    permissions: u16,
    id: u32,
}

impl List {
    pub(super) fn parse(value: &[u8]) -> Parsed {
        if value.is_empty() {
            return Parsed::Nothing;
        }
        let Some((version, entries)) = value.split_first_chunk::<4>() else {
            return Parsed::Malformed;
        };
        if u32::from_le_bytes(*version) != VERSION {
            return Parsed::OtherVersion;
        }
        let (entries, rest) = entries.as_chunks::<8>();
        if !rest.is_empty() {
            return Parsed::Malformed;
        }
        if entries.is_empty() {
            return Parsed::Nothing;
        }
        let list = Self(entries.iter().copied().map(Entry::parse).collect());
        if list.is_sound() {
            Parsed::List(list)
        } else {
            Parsed::Malformed
        }
    }

    /// Whether the entries stand in the order the kernel wants: owner, users, owning group,
    /// groups, mask, other; with a mask if users or groups are named.
    fn is_sound(&self) -> bool {
        let mut next = OWNER;
        let mut needs_mask = false;
        for entry in &self.0 {
            if entry.permissions > 7 || !entry.names_somebody() {
                return false;
            }
            next = match (entry.tag, next) {
                (OWNER, OWNER) => USER,
                (USER, USER) | (GROUP, GROUP) => {
                    needs_mask = true;
                    next
                }
                (GROUP_OWNER, USER) => GROUP,
                (MASK, GROUP) => OTHER,
                (OTHER, OTHER) => 0,
                (OTHER, GROUP) if !needs_mask => 0,
                _ => return false,
            };
        }
        next == 0
    }

    /// Whether the list says more than a mode can.
    pub(super) fn says_more_than_a_mode(&self) -> bool {
        let extended = |entry: &Entry| matches!(entry.tag, USER | GROUP | MASK);
        self.0.iter().any(extended)
    }

    /// What `chmod` does: owner and others get the mode's permissions, and so does the mask, or
    /// the owning group where there is no mask.
    pub(super) fn change_mode(&mut self, mode: u16) {
        let has_mask = self.0.iter().any(|entry| entry.tag == MASK);
        for entry in &mut self.0 {
            match entry.tag {
                OWNER => entry.permissions = mode >> 6 & 7,
                MASK => entry.permissions = mode >> 3 & 7,
                GROUP_OWNER if !has_mask => entry.permissions = mode >> 3 & 7,
                OTHER => entry.permissions = mode & 7,
                _ => {}
            }
        }
    }

    /// The value of the attribute.
    pub(super) fn to_value(&self) -> Vec<u8> {
        let mut value = VERSION.to_le_bytes().to_vec();
        for entry in &self.0 {
            value.extend_from_slice(&entry.tag.to_le_bytes());
            value.extend_from_slice(&entry.permissions.to_le_bytes());
            value.extend_from_slice(&entry.id.to_le_bytes());
        }
        value
    }
}

impl Entry {
    fn parse([t0, t1, p0, p1, i0, i1, i2, i3]: [u8; 8]) -> Self {
        let tag = u16::from_le_bytes([t0, t1]);
        Self {
            tag,
            permissions: u16::from_le_bytes([p0, p1]),
            id: match tag {
                USER | GROUP => u32::from_le_bytes([i0, i1, i2, i3]),
                _ => NOBODY,
            },
        }
    }

    fn names_somebody(self) -> bool {
        !matches!(self.tag, USER | GROUP) || self.id != NOBODY
    }
}

/// Changes the access list among `xattrs`, if there is one, as `chmod` to `mode` would.
pub(super) fn change_mode(xattrs: &mut Xattrs, mode: u16) {
    if let Some(value) = xattrs.get_mut(ACCESS)
        && let Parsed::List(mut list) = List::parse(value)
    {
        list.change_mode(mode);
        *value = list.to_value();
    }
}

/// The lists with which a file begins in a directory with the attributes `above`.
pub(super) fn inherited(above: &Xattrs, is_directory: bool, mode: u16) -> Xattrs {
    let mut xattrs = Xattrs::new();
    let Some(default) = above.get(DEFAULT) else {
        return xattrs;
    };
    if is_directory {
        xattrs.insert(DEFAULT.to_vec(), default.clone());
    }
    if let Parsed::List(mut list) = List::parse(default)
        && list.says_more_than_a_mode()
    {
        list.change_mode(mode);
        xattrs.insert(ACCESS.to_vec(), list.to_value());
    }
    xattrs
}
