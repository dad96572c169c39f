//! Attributes as FUSE has them, from a metadata image.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo};
use larder_proto::erofs::{self, Inode};

use super::inode::Node;

/// What `stat` calls the preferred size of reads.
const BLOCK_SIZE: u32 = 4096;

pub(super) fn attributes(node: Node, inode: &Inode) -> FileAttr {
    let time = time(inode.mtime.seconds, inode.mtime.nanoseconds);
    FileAttr {
        ino: INodeNo(node.number()),
        size: inode.size,
        blocks: inode.size.div_ceil(512),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: file_type(inode.file_type),
        perm: inode.mode,
        nlink: inode.nlink,
        uid: inode.uid,
        gid: inode.gid,
        rdev: device(inode.rdev.major, inode.rdev.minor),
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// A directory of the session itself.
pub(super) fn directory(node: Node) -> FileAttr {
    FileAttr {
        kind: FileType::Directory,
        perm: 0o755,
        nlink: 2,
        ..device_file(node, 0)
    }
}

/// A name that leads nowhere.
pub(super) fn nothing() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        ..device_file(Node::Root, 0)
    }
}

/// A layer's device.
pub(super) fn device_file(node: Node, len: u64) -> FileAttr {
    FileAttr {
        ino: INodeNo(node.number()),
        size: len,
        blocks: len.div_ceil(512),
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0o400,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

pub(super) fn file_type(file_type: erofs::FileType) -> FileType {
    match file_type {
        erofs::FileType::Regular => FileType::RegularFile,
        erofs::FileType::Directory => FileType::Directory,
        erofs::FileType::CharDevice => FileType::CharDevice,
        erofs::FileType::BlockDevice => FileType::BlockDevice,
        erofs::FileType::Fifo => FileType::NamedPipe,
        erofs::FileType::Socket => FileType::Socket,
        erofs::FileType::Symlink => FileType::Symlink,
    }
}

/// A device number as the FUSE protocol has it: the kernel's 32-bit form.
fn device(major: u32, minor: u32) -> u32 {
    minor & 0xff | (major & 0xfff) << 8 | (minor & !0xff) << 12
}

fn time(seconds: i64, nanoseconds: u32) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base = if seconds < 0 {
        UNIX_EPOCH.checked_sub(whole)
    } else {
        UNIX_EPOCH.checked_add(whole)
    };
    base.and_then(|base| base.checked_add(Duration::from_nanos(nanoseconds.into())))
        .unwrap_or(UNIX_EPOCH)
}
