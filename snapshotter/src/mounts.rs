//! What containerd has to mount for a snapshot: pure, so that it answers at any time.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use larder_proto::grpc::Mount;

use crate::store::{Chain, Directories, Kind, Record};

/// Options every overlay gets on this kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OverlayOptions {
    extra: Vec<String>,
}

impl OverlayOptions {
    /// Looks at the overlay module's parameters, which are below `/sys/module/overlay/parameters`.
    pub fn probe() -> Self {
        Self::from_parameters(Path::new("/sys/module/overlay/parameters"))
    }

    fn from_parameters(parameters: &Path) -> Self {
        let mut extra = Vec::new();
        // With the inode index, mounting a snapshot a second time, as containerd does to look up
        // users, fails because its upper directory is in use.
        if parameters.join("index").exists() {
            extra.push("index=off".to_owned());
        }
        // These make changes that containerd's differ does not understand; off by default, and
        // turned off if the machine's owner turned them on.
        for name in ["metacopy", "redirect_dir"] {
            let value = std::fs::read_to_string(parameters.join(name));
            if value.is_ok_and(|value| value.trim() == "Y") {
                extra.push(format!("{name}=off"));
            }
        }
        Self { extra }
    }
}

/// The mounts of an active snapshot or a view. `merged` is where all lower layers are mounted as one, if they
/// are; `instead` may name another place for a lower layer.
pub fn mounts(
    directories: &Directories,
    chain: &Chain,
    options: &OverlayOptions,
    merged: Option<&Path>,
    instead: impl Fn(&Path) -> Option<PathBuf>,
) -> Vec<Mount> {
    let record = &chain.record;
    let place = |id: &u64| {
        let fs = directories.fs(*id);
        text(&instead(&fs).unwrap_or(fs))
    };
    let lowers: Vec<String> = match merged {
        Some(merged) => vec![text(merged)],
        None => lowers(&chain.parents).iter().map(place).collect(),
    };
    let own = text(&directories.fs(record.id));
    match (record.kind, lowers.as_slice()) {
        (Kind::View, []) => vec![bind(own, "ro")],
        (_, []) => vec![bind(own, "rw")],
        (Kind::View, [only]) => vec![bind(only.clone(), "ro")],
        (kind, lowers) => {
            let mut all = options.extra.clone();
            if kind == Kind::Active {
                all.push(format!("workdir={}", text(&directories.work(record.id))));
                all.push(format!("upperdir={own}"));
            }
            all.push(format!("lowerdir={}", lowers.join(":")));
            vec![Mount {
                r#type: "overlay".to_owned(),
                source: "overlay".to_owned(),
                options: all,
                ..Mount::default()
            }]
        }
    }
}

/// Ids of the lower layers, topmost first.
///
/// A lazily loaded layer that repeats keeps only its topmost place: the same file system twice in
/// one overlay is refused with ELOOP, and the lower one is hidden by the upper one anyway.
fn lowers(parents: &[Record]) -> Vec<u64> {
    let mut seen = HashSet::new();
    let first = |record: &&Record| record.layer().is_none_or(|layer| seen.insert(layer));
    parents
        .iter()
        .filter(first)
        .map(|record| record.id)
        .collect()
}

fn bind(source: String, access: &str) -> Mount {
    Mount {
        r#type: "bind".to_owned(),
        source,
        options: vec![access.to_owned(), "rbind".to_owned()],
        ..Mount::default()
    }
}

/// Paths are below the root directory, whose text the configuration checked.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests;
