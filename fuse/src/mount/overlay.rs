//! Overlay mounts.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string};

use super::attach::{attach, open_context, refused};
use super::{MountFailed, SOURCE};

/// An overlay: layers, and where changes go.
#[derive(Debug, Clone, Default)]
pub struct Overlay {
    /// The read-only layers, topmost first; at least one, and two when there is no `upper`.
    pub lower: Vec<PathBuf>,
    /// The directories for changes and for the kernel's own work, on one file system; without
    /// them the mount is read-only.
    pub upper: Option<(PathBuf, PathBuf)>,
}

/// How often an overlay is begun. A layer's mount is exchanged once, for a direct one when it is proven ([`super::replace`]), and that
/// is short: to meet it again and again takes as many layers that were proven at the same moment.
const ATTEMPTS: usize = 8;

/// Mounts `overlay` at `target`.
///
/// Layers are added one by one where the kernel can (6.5), which has no limit on their number of
/// bytes; otherwise as one string, of which the kernel takes 255 bytes here and 4 KiB by mount(2).
pub fn mount_overlay(overlay: &Overlay, target: &Path) -> Result<(), MountFailed> {
    let mut attempts = ATTEMPTS;
    let context = loop {
        let context = open_context("overlay", target)?;
        match configure(&context, overlay, lower_one_by_one) {
            Ok(()) => break context,
            // A layer went between its naming and the mounting.
            Err(Errno::INVAL) if attempts > 1 => attempts -= 1,
            // The kernel does not know `lowerdir+`, or the layers are wrong: the older way tells.
            Err(Errno::INVAL) => break older(overlay, target)?,
            Err(error) => return Err(refused("mount overlay at", target, &context, error)),
        }
    };
    let attributes = if overlay.upper.is_some() {
        MountAttrFlags::empty()
    } else {
        MountAttrFlags::MOUNT_ATTR_RDONLY
    };
    attach(&context, attributes, target)
}

fn older(overlay: &Overlay, target: &Path) -> Result<OwnedFd, MountFailed> {
    let context = open_context("overlay", target)?;
    configure(&context, overlay, lower_as_one)
        .map_err(|error| refused("mount overlay at", target, &context, error))?;
    Ok(context)
}

fn configure(
    context: &OwnedFd,
    overlay: &Overlay,
    lower: impl Fn(&OwnedFd, &[PathBuf]) -> Result<(), Errno>,
) -> Result<(), Errno> {
    fsconfig_set_string(context, "source", SOURCE)?;
    lower(context, &overlay.lower)?;
    match &overlay.upper {
        Some((upper, work)) => {
            fsconfig_set_string(context, "upperdir", upper)?;
            fsconfig_set_string(context, "workdir", work)?;
        }
        None => fsconfig_set_flag(context, "ro")?,
    }
    fsconfig_create(context)
}

fn lower_one_by_one(context: &OwnedFd, lower: &[PathBuf]) -> Result<(), Errno> {
    lower
        .iter()
        .try_for_each(|path| fsconfig_set_string(context, "lowerdir+", path))
}

fn lower_as_one(context: &OwnedFd, lower: &[PathBuf]) -> Result<(), Errno> {
    let escaped: Vec<_> = lower.iter().map(|path| escape(path)).collect();
    let joined = OsString::from_vec(escaped.join(&b':'));
    fsconfig_set_string(context, "lowerdir", joined)
}

/// overlayfs separates layers by colons, and takes a backslash before one that is not.
fn escape(path: &Path) -> Vec<u8> {
    let mut escaped = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        if matches!(byte, b':' | b'\\') {
            escaped.push(b'\\');
        }
        escaped.push(byte);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::mount::{Unmount, bind, replace, unmount};

    struct Gone<'a>(&'a Path);

    impl Drop for Gone<'_> {
        fn drop(&mut self) {
            unmount(self.0, Unmount::Lazy).unwrap();
        }
    }

    /// Layers with colons in their names, on both ways of handing them over.
    #[test]
    fn a_mounted_overlay_shows_its_layers_and_takes_changes() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().canonicalize().unwrap();
        for name in ["a:1", "b", "upper", "work", "at"] {
            std::fs::create_dir(root.join(name)).unwrap();
        }
        std::fs::write(root.join("a:1/top"), "top").unwrap();
        std::fs::write(root.join("b/bottom"), "bottom").unwrap();
        let lower = vec![root.join("a:1"), root.join("b")];
        let at = root.join("at");
        let writable = Overlay {
            lower: lower.clone(),
            upper: Some((root.join("upper"), root.join("work"))),
        };
        mount_overlay(&writable, &at).unwrap();
        let gone = Gone(&at);
        std::fs::write(at.join("new"), "new").unwrap();
        assert_eq!(std::fs::read(at.join("bottom")).unwrap(), b"bottom");
        assert_eq!(std::fs::read(root.join("upper/new")).unwrap(), b"new");
        drop(gone);
        mount_overlay(&Overlay { lower, upper: None }, &at).unwrap();
        let _gone = Gone(&at);
        assert_eq!(std::fs::read(at.join("top")).unwrap(), b"top");
        assert!(std::fs::write(at.join("new"), "new").is_err());
    }

    /// Promise: layers whose mounts are exchanged while an overlay of them is made are no reason for it to fail. Without
    /// further attempts, one of three runs fails.
    #[test]
    fn a_layer_that_is_exchanged_meanwhile_is_taken() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().canonicalize().unwrap();
        for name in ["lazy", "direct", "layer", "below", "at"] {
            std::fs::create_dir(root.join(name)).unwrap();
        }
        std::fs::write(root.join("lazy/file"), "same").unwrap();
        std::fs::write(root.join("direct/file"), "same").unwrap();
        let (layer, at) = (root.join("layer"), root.join("at"));
        // The kernel exchanges what is a mount of its own, so both are.
        for name in ["lazy", "direct"] {
            bind(&root.join(name), &root.join(name)).unwrap();
        }
        bind(&root.join("lazy"), &layer).unwrap();
        let made = ["lazy", "direct", "layer"].map(|name| root.join(name));
        let _gone = made.each_ref().map(|place| Gone(place));
        let ends = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ends.load(Ordering::Relaxed) {
                    for name in ["direct", "lazy"] {
                        replace(&root.join(name), &layer).unwrap();
                        std::thread::sleep(Duration::from_micros(100));
                    }
                }
            });
            let overlay = Overlay {
                lower: vec![layer.clone(), root.join("below")],
                upper: None,
            };
            let once = || {
                mount_overlay(&overlay, &at).map_err(|error| error.to_string())?;
                let found = std::fs::read(at.join("file"));
                unmount(&at, Unmount::Lazy).unwrap();
                let found = found.map_err(|error| error.to_string())?;
                (found == b"same")
                    .then_some(())
                    .ok_or(String::from("other bytes"))
            };
            let all = (0..1_000).try_for_each(|_| once());
            ends.store(true, Ordering::Relaxed);
            assert_eq!(all, Ok(()));
        });
    }

    #[test]
    fn a_failed_overlay_tells_where() {
        let overlay = Overlay {
            lower: vec!["/nowhere/a".into(), "/nowhere/b".into()],
            upper: None,
        };
        let error = mount_overlay(&overlay, Path::new("/mnt")).unwrap_err();
        assert!(error.to_string().contains("/mnt"), "{error}");
    }
}
