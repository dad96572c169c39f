//! Which files Python reads to start, and to import what a script imports: in that order, modules as deep
//! as they are imported, by the rules of its path finder.

mod source;

use std::collections::{HashMap, HashSet};

use larder_proto::tree::Kind;

use self::source::{Import, imports};
use super::Content;
use super::command::{Command, directories};
use super::walk::regular;
use crate::view::{Found, View};

/// What Python imports before the first line of any script.
const FIRST: [&str; 8] = [
    "encodings",
    "encodings.aliases",
    "encodings.utf_8",
    "codecs",
    "io",
    "abc",
    "site",
    "os",
];

/// Bytes of a module's source that are looked at; imports stand at the top.
const SOURCE_BYTES_MAX: u64 = 256 << 10;

/// Modules that one script imports, those that are not there included: a large application has a thousand or two. Each
/// takes a few look-ups, and its source is read again where many names lead to one file.
const MODULES_MAX: usize = 8 << 10;

/// Modules that wait to be looked at: an import of one asks for itself and its parents.
const WAITING_MAX: usize = 16 << 10;

/// Parts of a module's name.
const PARTS_MAX: usize = 32;

/// A Python of an image.
#[derive(Debug, Clone)]
pub(super) struct Python {
    /// `311` of Python 3.11, for the names of compiled modules.
    tag: String,
    /// Where modules are looked for, without the script's own directory.
    path: Vec<Vec<u8>>,
}

/// What is still to be imported.
#[derive(Debug)]
pub(super) struct Imports<'a> {
    python: &'a Python,
    /// The script's directory comes first.
    path: Vec<Vec<u8>>,
    /// The next one last.
    waiting: Vec<Waiting>,
    seen: HashSet<String>,
    /// Directories of packages, by name.
    packages: HashMap<String, Vec<u8>>,
}

#[derive(Debug)]
enum Waiting {
    Module(String),
    /// A text, in which package it is.
    Source(Found, String),
}

impl Python {
    /// The Python whose interpreter was called as `called` and is the file `file`.
    pub(super) fn of(view: &View, command: &Command, called: &[u8], file: &Found) -> Option<Self> {
        let own = [called, &[b"/", file.path()].concat()].map(prefix);
        let usual = [b"/usr/local".to_vec(), b"/usr".to_vec()];
        let prefixes: Vec<_> = own.into_iter().chain(usual).collect();
        let libraries = prefixes.iter().flat_map(|prefix| {
            ["lib", "lib64"].map(|lib| [prefix.as_slice(), b"/", lib.as_bytes()].concat())
        });
        let libraries: Vec<_> = libraries.collect();
        let name = file.path().rsplit(|&byte| byte == b'/').next()?;
        let standard = libraries.iter().find_map(|lib| standard(view, lib, name))?;
        let version = standard.rsplit(|&byte| byte == b'/').next()?.to_vec();
        let tag = String::from_utf8_lossy(&version);
        let tag = tag.strip_prefix("python")?.replace('.', "");
        let given = command.variable("PYTHONPATH").unwrap_or_default();
        let mut path: Vec<_> = directories(given)
            .into_iter()
            .map(|one| one.as_bytes().to_vec())
            .collect();
        path.push(standard.clone());
        path.push([&standard, &b"/lib-dynload"[..]].concat());
        for lib in &libraries {
            for (version, site) in [
                (version.as_slice(), &b"site-packages"[..]),
                (version.as_slice(), b"dist-packages"),
                (b"python3", b"dist-packages"),
            ] {
                path.push([lib.as_slice(), b"/", version, b"/", site].concat());
            }
        }
        let mut seen = HashSet::new();
        path.retain(|one| seen.insert(one.clone()) && is_directory(view, one));
        Some(Self { tag, path })
    }

    /// What it imports before any script.
    pub(super) fn first(&self) -> Imports<'_> {
        let first = FIRST.iter().rev();
        Imports {
            python: self,
            path: self.path.clone(),
            waiting: first
                .map(|name| Waiting::Module((*name).to_owned()))
                .collect(),
            seen: HashSet::new(),
            packages: HashMap::new(),
        }
    }

    /// What a script imports.
    pub(super) fn script(&self, script: &Found) -> Imports<'_> {
        let own = parent(&[b"/", script.path()].concat()).to_vec();
        Imports {
            path: std::iter::once(own).chain(self.path.clone()).collect(),
            waiting: vec![Waiting::Source(script.clone(), String::new())],
            ..self.first()
        }
    }

    /// What running a module as a program imports.
    pub(super) fn module(&self, name: &str) -> Imports<'_> {
        let main = format!("{name}.__main__");
        Imports {
            waiting: [main, name.to_owned()].map(Waiting::Module).into(),
            ..self.first()
        }
    }

    /// The files beside which packages are announced to `site`.
    pub(super) fn announcements(&self, view: &View) -> Vec<Vec<u8>> {
        let sites = self.path.iter().filter(|one| one.ends_with(b"-packages"));
        let announced = sites.flat_map(|site| {
            let directory = view.find(site, true).ok();
            let names = directory.map(|found| view.list(&found)).unwrap_or_default();
            let names = names.into_iter().map(|(name, _)| name);
            names
                .filter(|name| name.ends_with(b".pth"))
                .map(|name| [site.as_slice(), b"/", &name].concat())
        });
        announced.take(64).collect()
    }
}

impl Imports<'_> {
    /// The next file that is read.
    pub(super) async fn next(
        &mut self,
        view: &View,
        content: &mut impl Content,
    ) -> Result<Option<Found>, String> {
        while let Some(next) = self.waiting.pop() {
            match next {
                Waiting::Source(file, package) => {
                    let text = content.read(view, &file, 0..SOURCE_BYTES_MAX).await?;
                    let found = imports(&String::from_utf8_lossy(&text));
                    self.push(found.iter().flat_map(|import| wanted(import, &package)));
                }
                Waiting::Module(name) => {
                    if self.seen.len() >= MODULES_MAX {
                        return Ok(None);
                    }
                    if self.seen.contains(&name) {
                        continue;
                    }
                    self.seen.insert(name.clone());
                    if let Some(file) = self.module(view, &name) {
                        return Ok(Some(file));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Has these modules imported next, the first one first, parents before what is in them.
    fn push(&mut self, names: impl Iterator<Item = String>) {
        let mut all = Vec::new();
        for name in names {
            let ends = name.match_indices('.').map(|(at, _)| at).take(PARTS_MAX);
            let parents = ends.map(|end| name[..end].to_owned());
            all.extend(parents.filter(|name| !self.seen.contains(name)));
            if !self.seen.contains(&name) {
                all.push(name);
            }
        }
        let room = WAITING_MAX.saturating_sub(self.waiting.len());
        all.truncate(room);
        self.waiting
            .extend(all.into_iter().rev().map(Waiting::Module));
    }

    /// The file of a module; its source is looked at next.
    fn module(&mut self, view: &View, name: &str) -> Option<Found> {
        let (package, last) = name.rsplit_once('.').unwrap_or(("", name));
        let places = match package {
            "" => self.path.clone(),
            _ => vec![self.packages.get(package)?.clone()],
        };
        for place in places {
            let at = [place.as_slice(), b"/", last.as_bytes()].concat();
            let init = [&at[..], b"/__init__"].concat();
            if let Some((source, read)) = self.source(view, &init) {
                self.packages.insert(name.to_owned(), at);
                self.waiting.push(Waiting::Source(source, name.to_owned()));
                return Some(read);
            }
            for suffix in [
                format!(".cpython-{}", self.python.tag),
                ".abi3".into(),
                String::new(),
            ] {
                if let Some(found) = extension(view, &place, last, &suffix) {
                    return Some(found);
                }
            }
            if let Some((source, read)) = self.source(view, &at) {
                self.waiting
                    .push(Waiting::Source(source, package.to_owned()));
                return Some(read);
            }
            if package.is_empty() && is_directory(view, &at) {
                // A package without a file of its own may go on elsewhere; the first place is the usual one.
                self.packages.entry(name.to_owned()).or_insert(at);
            } else if is_directory(view, &at) {
                self.packages.insert(name.to_owned(), at);
            }
        }
        None
    }

    /// The source `STEM.py`, and what is read in its place: its compiled form where there is one.
    fn source(&self, view: &View, stem: &[u8]) -> Option<(Found, Found)> {
        let source = regular(view, &[stem, b".py"].concat())?;
        let name = stem.rsplit(|&byte| byte == b'/').next()?;
        let tag = format!(".cpython-{}.pyc", self.python.tag);
        let compiled = [parent(stem), b"/__pycache__/", name, tag.as_bytes()].concat();
        let read = regular(view, &compiled).unwrap_or_else(|| source.clone());
        Some((source, read))
    }
}

/// An extension module `NAME SUFFIX[-MACHINE].so` in a directory.
fn extension(view: &View, place: &[u8], name: &str, suffix: &str) -> Option<Found> {
    let directory = view.find(place, true).ok()?;
    let start = format!("{name}{suffix}");
    let machine = |rest: &[u8]| suffix.starts_with(".cpython") && rest.starts_with(b"-");
    let fits = |entry: &[u8]| {
        let rest = entry.strip_prefix(start.as_bytes());
        let rest = rest.and_then(|rest| rest.strip_suffix(b".so"));
        rest.is_some_and(|rest| rest.is_empty() || machine(rest))
    };
    let entry = view.names_from(&directory, start.as_bytes());
    let entry = entry.into_iter().find(|entry| fits(entry))?;
    regular(view, &[place, b"/", &entry].concat())
}

/// The modules that an import in `package` asks for. What is taken from a module may be a module of it.
fn wanted(import: &Import, package: &str) -> Vec<String> {
    let mut from: Vec<&str> = Vec::new();
    if import.level > 0 {
        let parts: Vec<_> = package.split('.').filter(|part| !part.is_empty()).collect();
        let Some(kept) = (parts.len() + 1).checked_sub(import.level) else {
            return Vec::new();
        };
        from.extend(&parts[..kept]);
    }
    from.extend(import.name.split('.').filter(|part| !part.is_empty()));
    let base = from.join(".");
    let mut names = vec![base.clone()];
    names.extend(import.names.iter().map(|name| match &base[..] {
        "" => name.clone(),
        _ => format!("{base}.{name}"),
    }));
    names.retain(|name| !name.is_empty());
    names
}

/// The directory of the standard library below `lib`: that of the version in the interpreter's name, or any.
fn standard(view: &View, lib: &[u8], interpreter: &[u8]) -> Option<Vec<u8>> {
    let directory = view.find(lib, true).ok()?;
    let names = view.names_from(&directory, b"python");
    let has_version = interpreter.contains(&b'.');
    let fits = names
        .into_iter()
        .filter(|name| name.contains(&b'.') && (!has_version || name.as_slice() == interpreter));
    let mut paths = fits.map(|name| [lib, b"/", &name].concat());
    paths.find(|path| regular(view, &[path.as_slice(), b"/os.py"].concat()).is_some())
}

/// What the path of an interpreter in `bin` begins with.
fn prefix(path: &[u8]) -> Vec<u8> {
    parent(parent(path)).to_vec()
}

fn parent(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
    &path[..end]
}

fn is_directory(view: &View, path: &[u8]) -> bool {
    let found = view.find(path, true);
    found.is_ok_and(|found| matches!(view.node(&found).kind, Kind::Directory(_)))
}
