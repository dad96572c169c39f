//! Extended attributes: what several files have in common is stored once.

use std::collections::HashMap;

use super::{Refusal, WriteError};
use crate::erofs::format::{XATTR_BODY_MAX, XATTR_ENTRY_LEN, XATTR_HEADER_LEN};
use crate::erofs::image::xattr::{Name, split_name};
use crate::tree::{Kind, NodeId, Tree};

/// Most shared attributes one inode can name: their number has 8 bits.
const SHARED_MAX: usize = u8::MAX as usize;

/// The extended attributes of a tree, encoded.
#[derive(Debug)]
pub(super) struct Plan {
    /// The shared area.
    pub(super) shared: Vec<u8>,
    /// By place in the walk's order: what follows the inode; empty without attributes.
    pub(super) bodies: Vec<Vec<u8>>,
}

type Attribute<'a> = (&'a [u8], &'a [u8]);

/// Encodes the attributes of the nodes in `order`.
pub(super) fn plan(
    tree: &Tree,
    order: &[NodeId],
    refuse: &impl Fn(NodeId, Refusal) -> WriteError,
) -> Result<Plan, WriteError> {
    let mut uses: HashMap<Attribute<'_>, usize> = HashMap::new();
    for &id in order {
        let node = tree.node(id);
        for (name, value) in &node.xattrs {
            check(&node.kind, name, value).map_err(|refusal| refuse(id, refusal))?;
            *uses.entry((name, value)).or_default() += 1;
        }
    }
    let mut shared = Shared::default();
    let body = |&id: &NodeId| {
        let xattrs = &tree.node(id).xattrs;
        body(
            xattrs.iter().map(|(n, v)| (&n[..], &v[..])),
            &uses,
            &mut shared,
        )
        .map_err(|refusal| refuse(id, refusal))
    };
    let bodies = order.iter().map(body).collect::<Result<_, _>>()?;
    Ok(Plan {
        shared: shared.area,
        bodies,
    })
}

/// The shared area while it grows, in the order of first use.
#[derive(Debug, Default)]
struct Shared<'a> {
    area: Vec<u8>,
    ids: HashMap<Attribute<'a>, u32>,
}

impl<'a> Shared<'a> {
    /// The attribute's number: its offset in the area, in words.
    fn id(&mut self, attribute: Attribute<'a>) -> Result<u32, Refusal> {
        let next = u32::try_from(self.area.len() / 4)
            .map_err(|_| Refusal::Unrepresentable("the shared attributes are too long"))?;
        let id = *self.ids.entry(attribute).or_insert(next);
        if id == next {
            encode(attribute, &mut self.area);
        }
        Ok(id)
    }
}

fn body<'a>(
    xattrs: impl Iterator<Item = Attribute<'a>>,
    uses: &HashMap<Attribute<'a>, usize>,
    shared: &mut Shared<'a>,
) -> Result<Vec<u8>, Refusal> {
    let (mut ids, mut inline) = (Vec::new(), Vec::new());
    for attribute in xattrs {
        let common = uses.get(&attribute).is_some_and(|&n| n > 1);
        if common && ids.len() < SHARED_MAX {
            ids.push(shared.id(attribute)?);
        } else {
            encode(attribute, &mut inline);
        }
    }
    if ids.is_empty() && inline.is_empty() {
        return Ok(Vec::new());
    }
    let mut body = vec![0; XATTR_HEADER_LEN];
    // At most SHARED_MAX.
    body[4] = u8::try_from(ids.len()).unwrap_or(u8::MAX);
    body.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
    body.extend(inline);
    if body.len() > XATTR_BODY_MAX {
        return Err(Refusal::Unrepresentable(
            "has more than 256 KiB of extended attributes",
        ));
    }
    Ok(body)
}

/// ```text
/// 0 length of the name's suffix u8   2 length of the value u16   4 suffix, value, zeros to a
/// 1 number of the name's prefix u8                                 multiple of 4
/// ```
fn encode((name, value): Attribute<'_>, out: &mut Vec<u8>) {
    let Some(name) = split_name(name) else {
        return;
    };
    debug_assert!(out.len().is_multiple_of(XATTR_ENTRY_LEN));
    // `check` bounds both lengths.
    out.push(u8::try_from(name.suffix.len()).unwrap_or(u8::MAX));
    out.push(name.prefix.index());
    out.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_le_bytes());
    out.extend(name.suffix);
    out.extend(value);
    out.resize(out.len().next_multiple_of(XATTR_ENTRY_LEN), 0);
}

fn check(kind: &Kind, name: &[u8], value: &[u8]) -> Result<(), Refusal> {
    let is_directory = matches!(kind, Kind::Directory(_));
    let unknown = "has an extended attribute of a kind that EROFS does not have";
    let name: Name<'_> = split_name(name).ok_or(Refusal::Unrepresentable(unknown))?;
    name.check(value, is_directory)
        .map_err(Refusal::Unrepresentable)?;
    if value.len() > usize::from(u16::MAX) {
        return Err(Refusal::Unrepresentable(
            "has an extended attribute of 65536 bytes; EROFS ends at 65535",
        ));
    }
    Ok(())
}
