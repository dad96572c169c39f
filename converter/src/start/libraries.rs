//! Where the libraries of a program are: the directories of glibc's and musl's loaders, in their order.

use larder_proto::limits::NAME_BYTES_MAX;

use super::Content;
use super::command::{Command, directories};
use super::object::Object;
use crate::view::{Found, View};

/// Directories that one list may have.
pub(super) const DIRECTORIES_MAX: usize = 64;

/// Bytes of one file of the loader's configuration; they are lists of a few directories.
const CONFIGURATION_BYTES_MAX: u64 = 64 << 10;

/// Files of the loader's configuration, included ones counted.
const CONFIGURATIONS_MAX: usize = 32;

/// Where loaders look at last. Which of them is a loader's own depends on how it was built, and what is in
/// the others is of another machine, or the same files under another name.
const LAST: [&str; 5] = ["/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib"];

/// Where the system looks for libraries.
#[derive(Debug, Default)]
pub(super) struct Libraries {
    /// From the environment.
    first: Vec<Vec<u8>>,
    /// From the loader's configuration, and its own.
    last: Vec<Vec<u8>>,
}

impl Libraries {
    /// As the image says.
    pub(super) async fn of(
        view: &View,
        content: &mut impl Content,
        command: &Command,
    ) -> Result<Self, String> {
        let bytes = |one: &str| one.as_bytes().to_vec();
        let given = command.variable("LD_LIBRARY_PATH").unwrap_or_default();
        let mut last = configured(view, content).await?;
        last.extend(LAST.map(bytes));
        Ok(Self {
            first: directories(given).into_iter().map(bytes).collect(),
            last,
        })
    }

    /// The files that may be the library `name` which `by` needs, the loader's choice first.
    pub(super) fn candidates(
        &self,
        view: &View,
        name: &[u8],
        by: &Object,
        program: &Object,
    ) -> Vec<Found> {
        let file = |path: &[u8]| super::walk::regular(view, path);
        if name.contains(&b'/') {
            return file(name).into_iter().collect();
        }
        if name.len() > NAME_BYTES_MAX {
            return Vec::new();
        }
        // A runpath makes the older rpaths void, its own object's as well as the program's.
        let rpath = |object: &Object| match object.runpath[..] {
            [] => object.rpath.clone(),
            _ => Vec::new(),
        };
        let rpaths = match by.runpath[..] {
            [] => [rpath(by), rpath(program)].concat(),
            _ => Vec::new(),
        };
        // The loader's own directory is the one for this kind of machine, as Debian has them.
        let own = program.interpreter.as_deref().and_then(file);
        let own = own.as_ref().map(|own| parent(own.path()));
        let all = rpaths.iter().chain(&self.first).chain(&by.runpath);
        let all = all.chain(&self.last).chain(&own);
        all.filter_map(|directory| file(&[directory.as_slice(), b"/", name].concat()))
            .collect()
    }
}

fn parent(path: &[u8]) -> Vec<u8> {
    let end = path.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
    [b"/", &path[..end]].concat()
}

/// The directories of `/etc/ld.so.conf` and what it includes, and of musl's files.
async fn configured(view: &View, content: &mut impl Content) -> Result<Vec<Vec<u8>>, String> {
    let mut found = Vec::new();
    let mut files = matching(view, b"/etc/ld-musl-*.path");
    files.push(b"/etc/ld.so.conf".to_vec());
    for _ in 0..CONFIGURATIONS_MAX {
        let Some(path) = files.pop() else { break };
        let Some(file) = super::walk::regular(view, &path) else {
            continue;
        };
        let text = content
            .read(view, &file, 0..CONFIGURATION_BYTES_MAX)
            .await?;
        for line in text.split(|&byte| matches!(byte, b'\n' | b':')) {
            let line = line.split(|&byte| byte == b'#').next().unwrap_or_default();
            let line = line.trim_ascii();
            match line.strip_prefix(b"include") {
                Some(pattern) => files.extend(matching(view, pattern.trim_ascii())),
                None if line.starts_with(b"/") => found.push(line.to_vec()),
                None => {}
            }
        }
    }
    found.truncate(DIRECTORIES_MAX);
    Ok(found)
}

/// The paths that a pattern with at most one `*`, in its last component, stands for; the last one first.
fn matching(view: &View, pattern: &[u8]) -> Vec<Vec<u8>> {
    let end = pattern.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
    let (directory, name) = pattern.split_at(end);
    let name = name.strip_prefix(b"/").unwrap_or(name);
    let Some(star) = name.iter().position(|&byte| byte == b'*') else {
        return vec![pattern.to_vec()];
    };
    let (before, after) = (&name[..star], &name[star + 1..]);
    let Ok(found) = view.find(directory, true) else {
        return Vec::new();
    };
    let entries = view.list(&found).into_iter().map(|(name, _)| name);
    let fits = entries.filter(|name| {
        name.len() >= before.len() + after.len()
            && name.starts_with(before)
            && name.ends_with(after)
    });
    let fits = fits.take(CONFIGURATIONS_MAX);
    let mut paths: Vec<_> = fits.map(|name| [directory, b"/", &name].concat()).collect();
    paths.reverse();
    paths
}
