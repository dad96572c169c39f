//! Owner, mode, time and extended attributes of an entry, as unpacking it would leave them.

use std::borrow::Cow;

use super::acl::{self, List, Parsed};
use crate::limits;
use crate::tar::{Member, Time};
use crate::tree::{DeviceNumber, Kind, Mtime, Node};

/// Extended attribute that holds file capabilities.
const CAPABILITY: &[u8] = b"security.capability";

/// Latest time that fits 64-bit nanoseconds since 1970, in April 2262.
const TIME_MAX: (i64, u32) = (9_223_372_036, 854_775_807);

/// Gives `node` what `member` says about it. Attributes an earlier entry gave stay if this one
/// does not name them, because unpacking only ever sets them.
pub(super) fn apply(node: &mut Node, member: &mut Member) -> Result<(), Cow<'static, str>> {
    let is_directory = matches!(node.kind, Kind::Directory(_));
    if !is_directory {
        // Changing the owner of a file takes its capabilities away, even where nothing changes.
        node.xattrs.remove(CAPABILITY);
    }
    own(node, member);
    for (name, value) in std::mem::take(&mut member.xattrs) {
        if matches!(name.as_slice(), acl::ACCESS | acl::DEFAULT) {
            set_access_list(node, name, &value)?;
        } else if is_kept(&node.kind, &name, &value)? {
            node.xattrs.insert(name, value);
        }
    }
    if !matches!(node.kind, Kind::Symlink(_)) {
        node.mode = mode(member);
        acl::change_mode(&mut node.xattrs, node.mode);
    }
    node.mtime = bounded(member.mtime);
    Ok(())
}

/// Sets an access control list as the kernel would; it reads the list before it looks at the
/// file.
fn set_access_list(node: &mut Node, name: Vec<u8>, value: &[u8]) -> Result<(), Cow<'static, str>> {
    let malformed = || Err("its access control list is malformed".into());
    if value.len() > limits::XATTR_VALUE_BYTES_MAX {
        return malformed();
    }
    let list = match List::parse(value) {
        Parsed::Malformed => return malformed(),
        Parsed::OtherVersion => return Ok(()),
        Parsed::Nothing => None,
        Parsed::List(list) => Some(list),
    };
    match &node.kind {
        Kind::Symlink(_) => return Ok(()),
        Kind::Directory(_) => {}
        _ if name == acl::DEFAULT && list.is_some() => {
            return Err("it has a default access control list but is no directory".into());
        }
        _ => {}
    }
    match list {
        Some(list) if name == acl::DEFAULT || list.says_more_than_a_mode() => {
            node.xattrs.insert(name, list.to_value());
        }
        _ => {
            node.xattrs.remove(&name);
        }
    }
    Ok(())
}

/// Gives `node` the member's owner and group. The kernel takes 32 bits of them, and all ones
/// for "as it is".
pub(super) fn own(node: &mut Node, member: &Member) {
    if let Some(uid) = id(member.uid) {
        node.uid = uid;
    }
    if let Some(gid) = id(member.gid) {
        node.gid = gid;
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "as the kernel does"
)]
fn id(stated: i64) -> Option<u32> {
    let id = stated as u32;
    (id != u32::MAX).then_some(id)
}

#[expect(clippy::cast_sign_loss, reason = "masked to 12 bits")]
fn mode(member: &Member) -> u16 {
    (member.mode & 0o7777) as u16
}

/// The device number the kernel makes of the member's.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "masked"
)]
pub(super) fn device(member: &Member) -> DeviceNumber {
    DeviceNumber {
        major: member.device_major as u32 & 0xfff,
        minor: member.device_minor as u32 & 0xf_ffff,
    }
}

/// The time containerd sets: 1970 for everything before it, and for what 64-bit nanoseconds
/// cannot hold.
pub(super) fn bounded(time: Time) -> Mtime {
    if time.seconds < 0 || (time.seconds, time.nanoseconds) > TIME_MAX {
        return Mtime::default();
    }
    Mtime {
        seconds: time.seconds,
        nanoseconds: time.nanoseconds,
    }
}

/// Whether the kernel stores the attribute on a file of this kind. False where containerd goes
/// on without it; an error where the layer could not be unpacked.
fn is_kept(kind: &Kind, name: &[u8], value: &[u8]) -> Result<bool, Cow<'static, str>> {
    let shown = || String::from_utf8_lossy(&name[..name.len().min(80)]).into_owned();
    if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
        return Err(format!("it carries the overlayfs attribute {}", shown()).into());
    }
    if name.starts_with(b"trusted.") {
        return Ok(false);
    }
    if name.is_empty() || name.len() > limits::XATTR_NAME_BYTES_MAX {
        return Err("an extended attribute has no name or one longer than 255 bytes".into());
    }
    if value.len() > limits::XATTR_VALUE_BYTES_MAX {
        return Err(format!("its extended attribute {} is longer than 64 KiB", shown()).into());
    }
    if let Some(rest) = name.strip_prefix(b"user.") {
        let allowed = matches!(kind, Kind::Regular { .. } | Kind::Directory(_));
        if allowed && rest.is_empty() {
            return Err("an extended attribute is called \"user.\"".into());
        }
        return Ok(allowed);
    }
    if name == CAPABILITY {
        return if is_capability(value) {
            Ok(true)
        } else {
            Err("its file capabilities are malformed".into())
        };
    }
    match name.strip_prefix(b"security.") {
        Some(b"") => Err("an extended attribute is called \"security.\"".into()),
        Some(_) => Ok(true),
        None => Ok(false),
    }
}

/// Whether the kernel accepts the value as file capabilities: revision 2 with 20 bytes or 3 with
/// 24, no flag but the effective one.
fn is_capability(value: &[u8]) -> bool {
    let Some((magic, _)) = value.split_first_chunk::<4>() else {
        return false;
    };
    match u32::from_le_bytes(*magic) & !1 {
        0x0200_0000 => value.len() == 20,
        0x0300_0000 => value.len() == 24,
        _ => false,
    }
}
