//! New file systems and new places for old ones.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags,
    fsconfig_create, fsconfig_reconfigure, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
    fspick, move_mount, open_tree,
};

use super::{MountFailed, SOURCE, Unmount, unmount};

/// Longest message taken from the kernel's log of one mount, bytes. It hands out one at a time, and those
/// of EROFS and overlayfs are single lines, of paths at most a few hundred.
const MESSAGE_MAX: usize = 1024;

/// An EROFS file system: its metadata image and the devices its data lies on, in the image's order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Erofs<'a> {
    pub(crate) image: &'a Path,
    pub(crate) devices: &'a [PathBuf],
    /// Whether it reads its devices past the page cache, without waiting for one request before the next. Where the kernel
    /// cannot, it does not.
    pub(crate) direct_reads: bool,
}

/// EROFS's option for that. A kernel without it refuses it and takes the others.
pub(super) const DIRECT_READS: &str = "directio";

/// Mounts an EROFS image that is a plain file, without a loop device.
pub(crate) fn mount_erofs(erofs: Erofs<'_>, target: &Path) -> Result<(), MountFailed> {
    let context = create_erofs(erofs, target)?;
    attach(&context, MountAttrFlags::MOUNT_ATTR_RDONLY, target)
}

/// The root directory of an EROFS image that is mounted nowhere, and gone when this is closed.
pub(crate) fn open_erofs(erofs: Erofs<'_>) -> Result<OwnedFd, MountFailed> {
    let context = create_erofs(erofs, erofs.image)?;
    make(&context, MountAttrFlags::MOUNT_ATTR_RDONLY, erofs.image)
}

/// Mounts a file system in memory at `target`, for mount points alone.
pub(crate) fn mount_memory(target: &Path) -> Result<(), MountFailed> {
    let context = open_context("tmpfs", target)?;
    let made = fsconfig_set_string(&context, "source", SOURCE)
        .and_then(|()| fsconfig_set_string(&context, "mode", "0700"))
        .and_then(|()| fsconfig_create(&context));
    made.map_err(|error| refused("mount memory at", target, &context, error))?;
    attach(&context, MountAttrFlags::empty(), target)
}

/// The directory of the file system by which FUSE sessions are ended, mounted nowhere: its place is not mounted on every
/// machine.
pub(crate) fn open_fuse_control() -> Result<OwnedFd, MountFailed> {
    let place = Path::new("/sys/fs/fuse/connections");
    let context = open_context("fusectl", place)?;
    fsconfig_create(&context).map_err(|error| refused("open", place, &context, error))?;
    make(&context, MountAttrFlags::empty(), place)
}

fn create_erofs(erofs: Erofs<'_>, target: &Path) -> Result<OwnedFd, MountFailed> {
    let context = open_context("erofs", target)?;
    let made = fsconfig_set_string(&context, "source", erofs.image)
        .and_then(|()| {
            let mut devices = erofs.devices.iter();
            devices.try_for_each(|device| fsconfig_set_string(&context, "device", device))
        })
        .and_then(|()| fsconfig_set_flag(&context, "ro"))
        .and_then(|()| {
            if erofs.direct_reads && fsconfig_set_flag(&context, DIRECT_READS).is_err() {
                tracing::debug!("this kernel's EROFS reads devices through the page cache alone");
            }
            fsconfig_create(&context)
        });
    made.map_err(|error| refused("mount EROFS at", target, &context, error))?;
    Ok(context)
}

/// Has the EROFS file system at `target` read its devices through the page cache from here on, whoever uses it. What is
/// being read goes on.
pub(crate) fn buffer_reads(target: &Path) -> Result<(), MountFailed> {
    let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_SYMLINK_NOFOLLOW;
    let context = fspick(CWD, target, flags)
        .map_err(|error| MountFailed::new("take up the file system at", target, error))?;
    // Its options are those that are given here: without `directio` there is none.
    let changed = fsconfig_set_flag(&context, "ro").and_then(|()| fsconfig_reconfigure(&context));
    changed.map_err(|error| refused("change the file system at", target, &context, error))
}

/// Makes the mount, or the directory, at `from` appear at `to` as well.
pub(crate) fn bind(from: &Path, to: &Path) -> Result<(), MountFailed> {
    place(&copy(from)?, to)
}

/// Makes the mount at `from` appear at `to` instead of the topmost one there, which goes out of sight. Whoever
/// looks sees one or the other. If it is cut off half way, both are there, the old one on top.
///
/// Needs Linux 6.5.
pub(crate) fn replace(from: &Path, to: &Path) -> Result<(), MountFailed> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_BENEATH;
    move_mount(copy(from)?, "", CWD, to, flags)
        .map_err(|error| MountFailed::new("place a mount beneath", to, error))?;
    unmount(to, Unmount::Lazy)
}

fn copy(from: &Path) -> Result<OwnedFd, MountFailed> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, from, flags).map_err(|error| MountFailed::new("bind", from, error))
}

pub(super) fn open_context(kind: &str, target: &Path) -> Result<OwnedFd, MountFailed> {
    fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|error| MountFailed::new("open a file system for", target, error))
}

pub(super) fn attach(
    context: &OwnedFd,
    attributes: MountAttrFlags,
    target: &Path,
) -> Result<(), MountFailed> {
    place(&make(context, attributes, target)?, target)
}

fn make(
    context: &OwnedFd,
    attributes: MountAttrFlags,
    target: &Path,
) -> Result<OwnedFd, MountFailed> {
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(|error| refused("mount at", target, context, error))
}

/// What the kernel says about a failed configuration, with the error.
pub(super) fn refused(
    doing: &'static str,
    target: &Path,
    context: &OwnedFd,
    error: Errno,
) -> MountFailed {
    let mut message = vec![0; MESSAGE_MAX];
    let said = rustix::io::read(context.as_fd(), &mut message).unwrap_or(0);
    let kernel = (said > 0).then(|| {
        let text = String::from_utf8_lossy(&message[..said]);
        format!(" (kernel: {})", text.trim())
    });
    MountFailed {
        kernel,
        ..MountFailed::new(doing, target, error)
    }
}

fn place(mount: &OwnedFd, target: &Path) -> Result<(), MountFailed> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(mount, "", CWD, target, flags)
        .map_err(|error| MountFailed::new("place a mount at", target, error))
}
