//! `install` and `uninstall`: containerd's configuration with the snapshotter, and without.

use similar::TextDiff;

use super::InstallArgs;
use super::output::print;
use crate::config::{Config, Overrides};
use crate::install::{self, Change, Files, Wish};

/// Adds what containerd needs to know. `fragments`: in a file of its own where that works.
pub(super) fn install(args: &InstallArgs, cri: bool, fragments: bool) -> anyhow::Result<()> {
    let config = Config::load(args.config.as_deref(), &Overrides::default())?;
    let wish = Wish {
        name: args.snapshotter.clone(),
        address: config.address,
        root: config.root,
        cri,
    };
    let files = Files::new(&args.containerd_config, fragments);
    let change = install::install(&files, &wish)?;
    if args.dry_run {
        return print(&shown(&change));
    }
    if !change.is_none() {
        files.write_installed(&change, &wish.name)?;
    }
    print(&told(&change))
}

/// Takes it out again.
pub(super) fn uninstall(args: &InstallArgs) -> anyhow::Result<()> {
    let files = Files::new(&args.containerd_config, true);
    // A configuration that cannot be read is no reason to stay installed.
    let config = Config::load(args.config.as_deref(), &Overrides::default()).ok();
    let address = config.as_ref().map(|config| config.address.as_path());
    let change = install::uninstall(&files, &args.snapshotter, address)?;
    if args.dry_run {
        return print(&shown(&change));
    }
    if !change.is_none() {
        files.write_uninstalled(&change)?;
    }
    print(&told(&change))
}

/// Snapshotters that containerd 1.6 to 2.x brings along.
const BUILT_IN: [&str; 10] = [
    "aufs",
    "blockfile",
    "btrfs",
    "cimfs",
    "devmapper",
    "erofs",
    "native",
    "overlayfs",
    "windows",
    "zfs",
];

/// A snapshotter's name, which becomes a key, a file name and part of keys of snapshots.
pub(super) fn name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if BUILT_IN.contains(&text) {
        return Err(format!(
            "containerd has a snapshotter {text} of its own and does not start with two of the name"
        ));
    }
    if (1..=64).contains(&text.len()) && text.chars().all(fits) {
        return Ok(text.to_owned());
    }
    Err("a snapshotter's name has up to 64 letters, digits, - and _".to_owned())
}

/// What would change, as `diff -u` shows it.
fn shown(change: &Change) -> String {
    let (before, after) = (
        change.before.as_deref().unwrap_or_default(),
        change.after.as_deref().unwrap_or_default(),
    );
    let name = change.file.display().to_string();
    let (from, to) = (
        change.before.as_ref().map_or("/dev/null", |_| &name),
        change.after.as_ref().map_or("/dev/null", |_| &name),
    );
    let diff = TextDiff::from_lines(before, after);
    let mut text = diff.unified_diff().header(from, to).to_string();
    if change.is_none() {
        text = format!("{name} is as it should be\n");
    }
    text.extend(change.notes.iter().map(|note| format!("# {note}\n")));
    text
}

fn told(change: &Change) -> String {
    let name = change.file.display();
    let mut lines = Vec::new();
    match (change.is_none(), &change.after) {
        (true, _) => lines.push(format!("{name} is as it should be")),
        (false, None) => lines.push(format!("removed {name}")),
        (false, Some(_)) => lines.push(format!("wrote {name}")),
    }
    if let Some(backup) = change.backup.as_ref().filter(|_| !change.is_none()) {
        lines.push(format!("it was before as in {}", backup.display()));
    }
    lines.extend(change.notes.iter().map(|note| format!("note: {note}")));
    if !change.is_none() {
        lines.push("restart containerd: it reads its configuration when it starts".into());
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Regression: with the name of one of containerd's own snapshotters, containerd did not start any more.
    ///
    /// Promise: such a name is refused, and so is what is no name.
    #[test]
    fn names_that_containerd_does_not_start_with_are_refused() {
        for (text, is_fit) in [
            ("larder", true),
            ("larder_2-x", true),
            ("overlayfs", false),
            ("native", false),
            ("a.b", false),
            ("", false),
        ] {
            assert_eq!(name(text).is_ok(), is_fit, "{text}");
        }
    }
}
