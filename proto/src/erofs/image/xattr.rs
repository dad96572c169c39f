//! Extended attributes of an inode.

use super::{Image, Located, Nid};
use crate::erofs::format::{BLOCK, XATTR_ENTRY_LEN, XATTR_HEADER_LEN, u16_at, u32_at};

/// The prefixes of names that EROFS knows, with their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(in crate::erofs) enum Prefix {
    User = 1,
    AclAccess = 2,
    AclDefault = 3,
    Trusted = 4,
    Security = 6,
}

impl Prefix {
    const ALL: [Self; 5] = [
        Self::User,
        Self::AclAccess,
        Self::AclDefault,
        Self::Trusted,
        Self::Security,
    ];

    pub(in crate::erofs) fn index(self) -> u8 {
        self as u8
    }

    fn from_index(index: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.index() == index)
    }

    fn text(self) -> &'static [u8] {
        match self {
            Self::User => b"user.",
            Self::AclAccess => b"system.posix_acl_access",
            Self::AclDefault => b"system.posix_acl_default",
            Self::Trusted => b"trusted.",
            Self::Security => b"security.",
        }
    }

    /// Whether the prefix is the whole name.
    fn is_whole(self) -> bool {
        matches!(self, Self::AclAccess | Self::AclDefault)
    }
}

/// A name as EROFS stores it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::erofs) struct Name<'a> {
    pub(in crate::erofs) prefix: Prefix,
    pub(in crate::erofs) suffix: &'a [u8],
}

/// Splits a full name; `None` if no prefix fits.
pub(in crate::erofs) fn split_name(name: &[u8]) -> Option<Name<'_>> {
    Prefix::ALL.into_iter().find_map(|prefix| {
        let suffix = name.strip_prefix(prefix.text())?;
        (suffix.is_empty() == prefix.is_whole()).then_some(Name { prefix, suffix })
    })
}

impl Name<'_> {
    /// Whether the attribute may stand in an image: overlayfs's own attributes would redirect
    /// what the container sees, so none but the opaque mark of a directory may.
    pub(in crate::erofs) fn check(
        &self,
        value: &[u8],
        is_directory: bool,
    ) -> Result<(), &'static str> {
        if self.suffix.is_empty() != self.prefix.is_whole() || self.suffix.contains(&0) {
            return Err("has an extended attribute without a valid name");
        }
        if self.suffix.len() + self.prefix.text().len() > crate::limits::XATTR_NAME_BYTES_MAX {
            return Err("has an extended attribute whose name is longer than 255 bytes");
        }
        let overlay = self.suffix.starts_with(b"overlay.");
        match self.prefix {
            Prefix::User if overlay => Err("has a user.overlay extended attribute"),
            Prefix::Trusted if overlay => {
                let opaque = self.suffix == b"overlay.opaque" && value == b"y" && is_directory;
                opaque
                    .then_some(())
                    .ok_or("has a trusted.overlay extended attribute")
            }
            _ => Ok(()),
        }
    }
}

/// One extended attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Xattr<'a> {
    name: Name<'a>,
    /// Its value.
    pub value: &'a [u8],
}

impl<'a> Xattr<'a> {
    /// The full name, `user.colour`, in its two halves: what comes first, and the rest.
    pub fn name_parts(&self) -> (&'static [u8], &'a [u8]) {
        (self.name.prefix.text(), self.name.suffix)
    }

    /// The full name.
    pub fn name(&self) -> Vec<u8> {
        [self.name.prefix.text(), self.name.suffix].concat()
    }

    pub(super) fn split_name(&self) -> Name<'a> {
        self.name
    }

    /// The attribute whose entry is at the front of `bytes`, and the entry's length.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<(Self, usize)> {
        let (&[name_len, prefix, ..], rest) = bytes.split_first_chunk::<XATTR_ENTRY_LEN>()?;
        let prefix = Prefix::from_index(prefix)?;
        let (suffix, rest) = rest.split_at_checked(usize::from(name_len))?;
        let value_len = usize::from(u16_at(bytes, 2));
        let value = rest.get(..value_len)?;
        let len = XATTR_ENTRY_LEN + suffix.len() + value_len;
        let name = Name { prefix, suffix };
        Some((Self { name, value }, len.next_multiple_of(XATTR_ENTRY_LEN)))
    }
}

/// The extended attributes of an inode; see [`Image::xattrs`].
#[derive(Debug, Clone)]
pub struct Xattrs<'a> {
    /// Numbers of shared attributes, 4 bytes each.
    ids: &'a [u8],
    inline: &'a [u8],
    /// Where shared attributes lie.
    area: &'a [u8],
}

impl<B: AsRef<[u8]>> Image<B> {
    /// The extended attributes of `nid`: those it shares with other files first.
    pub fn xattrs(&self, nid: Nid) -> Xattrs<'_> {
        self.located(nid)
            .and_then(|located| self.xattrs_of(&located))
            .unwrap_or(Xattrs {
                ids: &[],
                inline: &[],
                area: &[],
            })
    }

    /// The value of the extended attribute with the full name `name`.
    pub fn xattr(&self, nid: Nid, name: &[u8]) -> Option<&[u8]> {
        let name = split_name(name)?;
        self.xattrs(nid)
            .find(|xattr| xattr.name == name)
            .map(|xattr| xattr.value)
    }

    /// The shared attributes: from their block to the end of the image.
    pub(super) fn shared_area(&self) -> &[u8] {
        usize::try_from(self.superblock.xattr_block)
            .ok()
            .and_then(|block| self.bytes().get(block.checked_mul(BLOCK)?..))
            .unwrap_or(&[])
    }

    pub(super) fn xattrs_of(&self, located: &Located) -> Option<Xattrs<'_>> {
        let start = located.xattrs_at();
        let body = self.bytes().get(start..start + located.raw.xattr_len)?;
        let (header, rest) = body.split_at_checked(XATTR_HEADER_LEN)?;
        let (ids, inline) = rest.split_at_checked(usize::from(header[4]) * 4)?;
        Some(Xattrs {
            ids,
            inline,
            area: self.shared_area(),
        })
    }
}

impl<'a> Xattrs<'a> {
    /// The attributes that are not shared, encoded.
    pub(super) fn inline(&self) -> &'a [u8] {
        self.inline
    }

    /// The numbers of the shared attributes: offsets in the area, in words.
    pub(super) fn shared_ids(&self) -> impl Iterator<Item = usize> + 'a {
        self.ids.chunks_exact(4).map(|id| u32_at(id, 0) as usize)
    }
}

impl<'a> Iterator for Xattrs<'a> {
    type Item = Xattr<'a>;

    fn next(&mut self) -> Option<Xattr<'a>> {
        if let Some((id, rest)) = self.ids.split_at_checked(4) {
            self.ids = rest;
            let at = usize::try_from(u32_at(id, 0)).ok()?.checked_mul(4)?;
            return Some(Xattr::parse(self.area.get(at..)?)?.0);
        }
        let (xattr, len) = Xattr::parse(self.inline)?;
        self.inline = self.inline.get(len..).unwrap_or(&[]);
        Some(xattr)
    }
}
