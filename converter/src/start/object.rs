//! An ELF file of an image: what it needs and what of it is loaded, read piece by piece.

use std::ops::Range;

use larder_proto::limits::PATH_BYTES_MAX;

use super::Content;
use super::elf::{self, DYNAMIC_BYTES_MAX, Form, HEAD_BYTES, Kind, Segment};
use crate::view::{Found, View};

/// A program or library.
#[derive(Debug, Clone)]
pub(super) struct Object {
    /// The file.
    pub(super) file: Found,
    /// What libraries must have in common with it.
    pub(super) form: Form,
    /// What it is loaded by.
    pub(super) interpreter: Option<Vec<u8>>,
    /// The libraries it needs, by name.
    pub(super) needed: Vec<Vec<u8>>,
    /// Where they are looked for before all else, `$ORIGIN` resolved.
    pub(super) rpath: Vec<Vec<u8>>,
    /// Where its own ones are looked for.
    pub(super) runpath: Vec<Vec<u8>>,
    /// Where in the file the first instruction is, of programs.
    pub(super) entry: Option<u64>,
    segments: Vec<Segment>,
}

impl Object {
    /// Reads what `file` says of itself; `None` if it is no program or library, or a damaged one.
    pub(super) async fn open(
        view: &View,
        content: &mut impl Content,
        file: &Found,
    ) -> Result<Option<Self>, String> {
        let head = content.read(view, file, 0..HEAD_BYTES).await?;
        let Some(header) = elf::header(&head) else {
            return Ok(None);
        };
        let table = header.table.clone();
        let form = header.form;
        let segments = form.segments(&content.read(view, file, table).await?);
        let part = |kind| segments.iter().find(|segment| segment.kind == kind);
        let mut object = Self {
            file: file.clone(),
            form,
            interpreter: None,
            needed: Vec::new(),
            rpath: Vec::new(),
            runpath: Vec::new(),
            entry: elf::place(&segments, header.entry),
            segments: segments.clone(),
        };
        if let Some(part) = part(Kind::Interpreter) {
            object.interpreter = text(view, content, file, part.file.start).await?;
        }
        let Some(part) = part(Kind::Dynamic) else {
            return Ok(Some(object));
        };
        let range = head_of(&part.file, DYNAMIC_BYTES_MAX);
        let dynamic = form.dynamic(&content.read(view, file, range).await?);
        let strings = dynamic.strings.and_then(|at| elf::place(&segments, at));
        let Some(strings) = strings else {
            return Ok(Some(object));
        };
        for name in dynamic.needed {
            let name = text(view, content, file, strings.saturating_add(name)).await?;
            object.needed.extend(name.filter(|name| !name.is_empty()));
        }
        for (from, to) in [
            (dynamic.rpath, &mut object.rpath),
            (dynamic.runpath, &mut object.runpath),
        ] {
            if let Some(from) = from {
                let list = text(view, content, file, strings.saturating_add(from)).await?;
                *to = search_path(&list.unwrap_or_default(), file.path());
            }
        }
        Ok(Some(object))
    }

    /// What is mapped of it, with whether it is written to.
    pub(super) fn loaded(&self) -> impl Iterator<Item = (Range<u64>, bool)> + '_ {
        self.segments
            .iter()
            .filter_map(|segment| match segment.kind {
                Kind::Load { is_writable } => Some((segment.file.clone(), is_writable)),
                _ => None,
            })
    }
}

/// The text at `at`, if it is one no longer than a path.
async fn text(
    view: &View,
    content: &mut impl Content,
    file: &Found,
    at: u64,
) -> Result<Option<Vec<u8>>, String> {
    let range = at..at.saturating_add(PATH_BYTES_MAX as u64 + 1);
    let bytes = content.read(view, file, range).await?;
    Ok(elf::text(&bytes).map(<[u8]>::to_vec))
}

fn head_of(range: &Range<u64>, len: u64) -> Range<u64> {
    range.start..range.end.min(range.start.saturating_add(len))
}

/// The directories of a list that an ELF file has, with `$ORIGIN` as the directory that `path` is in.
/// Those with other variables, and relative ones, are passed over.
fn search_path(list: &[u8], path: &[u8]) -> Vec<Vec<u8>> {
    let end = path.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
    let origin = [b"/", &path[..end]].concat();
    let mut found = Vec::new();
    for directory in list.split(|&byte| byte == b':') {
        let rest = [&b"$ORIGIN"[..], b"${ORIGIN}"]
            .iter()
            .find_map(|variable| directory.strip_prefix(*variable));
        match rest {
            Some(rest) if !rest.contains(&b'$') => found.push([&origin, rest].concat()),
            None if directory.starts_with(b"/") && !directory.contains(&b'$') => {
                found.push(directory.to_vec());
            }
            _ => {}
        }
    }
    found.truncate(super::libraries::DIRECTORIES_MAX);
    found
}
