//! The FUSE requests.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};
use larder_proto::erofs::{self, Image, Nid};

use super::Manner;
use super::ahead::Ahead;
use super::inode::Node;
use super::journal::{Begun, Entry, Journal};
use super::reads::{Wanted, answer};
use super::replay::operation;
use super::slots::{Content, Slot, Slots};
use super::tree;
use crate::config::DeviceReads;
use crate::sys::Mapping;

/// How long the kernel may believe what it was told: images do not change.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// Requests the kernel may have waiting at once: its own maximum. At the default of 12, a few
/// stalled readers delay everybody.
const BACKGROUND_MAX: u16 = u16::MAX;

/// Bytes of a directory that are listed again for a request of a daemon before, of which only the place
/// is known: what the kernel has room for at least.
const DIRECTORY_BYTES: u32 = 4096;

/// Longest name of a file, bytes: as on every other file system. FUSE itself would ask for longer ones.
const NAME_BYTES_MAX: usize = 255;

const GENERATION: Generation = Generation(0);

/// The file system of the session; clones serve the same one.
#[derive(Debug, Clone)]
pub(super) struct LarderFs {
    slots: Arc<Slots>,
    manner: Manner,
    /// For sessions whose trees are mounted.
    ahead: Option<Arc<Ahead>>,
    /// For kernels that cannot send a request again.
    journal: Option<Arc<Journal>>,
}

impl LarderFs {
    pub(super) fn new(
        slots: Arc<Slots>,
        manner: Manner,
        ahead: Option<Ahead>,
        journal: Option<Arc<Journal>>,
    ) -> Self {
        Self {
            slots,
            manner,
            ahead: ahead.map(Arc::new),
            journal,
        }
    }

    /// Whether what is asked of `inode` has to wait until the store has its layer again.
    fn must_wait(&self, inode: INodeNo) -> bool {
        let slot = Node::of(inode.0).and_then(Node::slot);
        slot.is_some_and(|slot| self.slots.is_awaited(slot))
    }

    /// Answers a request of `inode`: now, or when its layer is back.
    fn when_there(&self, inode: INodeNo, answer: impl FnOnce(&Self) + Send + 'static) {
        if self.must_wait(inode) {
            self.later(inode, answer);
        } else {
            answer(self);
        }
    }

    /// Has a request of `inode` answered when its layer is back, or given up. No thread waits for that.
    fn later(&self, inode: INodeNo, answer: impl FnOnce(&Self) + Send + 'static) {
        let Some(slot) = Node::of(inode.0).and_then(Node::slot) else {
            return answer(self);
        };
        let filesystem = self.clone();
        self.slots
            .postpone(slot, Box::new(move || answer(&filesystem)));
    }

    /// What a request fails with whose answer would be `error`: of a layer that is lost nothing can be said,
    /// and nothing may be remembered.
    fn or_lost(&self, inode: INodeNo, error: Errno) -> Errno {
        match Node::of(inode.0).and_then(Node::slot) {
            Some(slot) if self.slots.is_lost(slot) => Errno::EIO,
            _ => error,
        }
    }

    /// Writes a request down that needs no more than its number and an inode.
    fn begin(&self, request: &Request, operation: u32, inode: INodeNo) -> Option<Entry> {
        self.begin_with(request, operation, inode, (0, 0), b"")
    }

    /// Writes a request down, until what is returned is dropped, after the reply.
    fn begin_with(
        &self,
        request: &Request,
        operation: u32,
        inode: INodeNo,
        (offset, len): (u64, u32),
        name: &[u8],
    ) -> Option<Entry> {
        let journal = self.journal.as_ref()?;
        let begun = Begun {
            unique: request.unique().0,
            operation,
            inode: inode.0,
            offset,
            len,
            name: name.to_vec(),
        };
        journal.begin(&begun)
    }

    fn attributes(&self, node: Node) -> Option<FileAttr> {
        match node {
            Node::Root | Node::Devices | Node::Trees => Some(tree::directory(node)),
            Node::Device(slot) => match &self.slots.get(slot)?.content {
                Content::Layer { fetcher, .. } => {
                    Some(tree::device_file(node, fetcher.layer().device_len()))
                }
                Content::Faulty(faulty) => Some(tree::device_file(node, faulty.len())),
            },
            Node::File(slot, nid) => {
                let slot = self.slots.get(slot)?;
                Some(tree::attributes(node, &image(&slot)?.inode(nid)?))
            }
        }
    }

    fn child(&self, parent: Node, name: &[u8]) -> Option<Node> {
        let number = || std::str::from_utf8(name).ok()?.parse().ok();
        match parent {
            Node::Root if name == b"dev" => Some(Node::Devices),
            Node::Root if name == b"tree" => Some(Node::Trees),
            Node::Root | Node::Device(_) => None,
            Node::Devices => Some(Node::Device(number()?)),
            Node::Trees => {
                let number = number()?;
                let slot = self.slots.get(number)?;
                Some(Node::File(number, image(&slot)?.root()))
            }
            Node::File(slot, nid) => {
                let found = image(&*self.slots.get(slot)?)?.lookup(nid, name)?;
                Some(Node::File(slot, found))
            }
        }
    }

    fn file(&self, ino: INodeNo) -> Option<(Arc<Slot>, Nid)> {
        match Node::of(ino.0)? {
            Node::File(slot, nid) => Some((self.slots.get(slot)?, nid)),
            _ => None,
        }
    }

    fn read_file(slot: &Slot, nid: Nid, offset: u64, size: u32, reply: Later) {
        let Content::Layer { fetcher, image } = &slot.content else {
            return reply.error(Errno::EIO);
        };
        let Some(inode) = image.inode(nid) else {
            return reply.error(Errno::ENOENT);
        };
        let end = inode.size.min(offset.saturating_add(size.into()));
        if offset >= end {
            return reply.data(&[]);
        }
        let mut wanted = Wanted::new(end - offset);
        for extent in image.extents_within(nid, offset..end) {
            let (from, to) = (extent.file_offset, extent.file_offset + extent.len);
            let (start, stop) = (from.max(offset), to.min(end));
            if start < stop {
                let tar = extent.tar_offset + (start - from);
                wanted.add(start - offset, tar..tar + (stop - start));
            }
        }
        answer(fetcher, wanted, |bytes| send(bytes, reply));
    }

    fn read_device(slot: &Slot, offset: u64, size: u32, reply: Later) {
        match &slot.content {
            Content::Layer { fetcher, .. } => {
                let end = fetcher
                    .layer()
                    .device_len()
                    .min(offset.saturating_add(size.into()));
                if offset >= end {
                    return reply.data(&[]);
                }
                let mut wanted = Wanted::new(end - offset);
                wanted.add(0, offset..end);
                answer(fetcher, wanted, |bytes| send(bytes, reply));
            }
            Content::Faulty(faulty) => match faulty.read(offset, size) {
                Some(bytes) => reply.data(bytes),
                None => reply.error(Errno::EIO),
            },
        }
    }
}

fn image(slot: &Slot) -> Option<&Image<Mapping>> {
    match &slot.content {
        Content::Layer { image, .. } => Some(image),
        Content::Faulty(_) => None,
    }
}

/// A reply that may be given later, and the entry of its request.
struct Later {
    reply: ReplyData,
    entry: Option<Entry>,
}

impl Later {
    fn data(self, bytes: &[u8]) {
        self.reply.data(bytes);
        drop(self.entry);
    }

    fn error(self, error: Errno) {
        self.reply.error(error);
        drop(self.entry);
    }
}

fn send(bytes: Result<&[u8], ()>, reply: Later) {
    match bytes {
        Ok(bytes) => reply.data(bytes),
        Err(()) => reply.error(Errno::EIO),
    }
}

impl Filesystem for LarderFs {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_POSIX_ACL,
        ];
        for flag in wanted {
            // Each is an improvement the kernel may lack, none a condition.
            let _ = config.add_capabilities(flag);
        }
        if self.manner.without_opens {
            let _ = config.add_capabilities(InitFlags::FUSE_NO_OPEN_SUPPORT);
        }
        let _ = config.set_max_background(BACKGROUND_MAX);
        let _ = config.set_congestion_threshold(BACKGROUND_MAX);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.as_bytes();
        if name.len() > NAME_BYTES_MAX {
            return reply.error(Errno::ENAMETOOLONG);
        }
        let entry = self.begin_with(request, operation::LOOKUP, parent, (0, 0), name);
        if self.must_wait(parent) {
            let name = name.to_vec();
            return self.later(parent, move |fs| fs.look_up(parent, &name, reply, entry));
        }
        self.look_up(parent, name, reply, entry);
    }

    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        if let Some(slot) = Node::of(ino.0).and_then(Node::slot) {
            self.slots.forgotten(slot, lookups);
        }
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let entry = self.begin(request, operation::GETATTR, ino);
        self.when_there(ino, move |fs| {
            match Node::of(ino.0).and_then(|node| fs.attributes(node)) {
                Some(attributes) => reply.attr(&FOREVER, &attributes),
                None => reply.error(fs.or_lost(ino, Errno::ENOENT)),
            }
            drop(entry);
        });
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        let entry = self.begin(request, operation::READLINK, ino);
        self.when_there(ino, move |fs| {
            let file = fs.file(ino);
            let target = file
                .as_ref()
                .and_then(|(slot, nid)| image(slot)?.read_link(*nid));
            match target {
                Some(target) => reply.data(target),
                None => reply.error(fs.or_lost(ino, Errno::EINVAL)),
            }
            drop(entry);
        });
    }

    fn open(&self, request: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let entry = self.begin(request, operation::OPEN, ino);
        self.when_there(ino, move |fs| fs.open_file(ino, reply, entry));
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let part = (offset, size);
        let entry = self.begin_with(request, operation::READ, ino, part, b"");
        let reply = Later { reply, entry };
        self.when_there(ino, move |fs| fs.read_part(ino, offset, size, reply));
    }

    fn flush(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: LockOwner,
        reply: ReplyEmpty,
    ) {
        let _entry = self.begin(request, operation::FLUSH, ino);
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let entry = self.begin(request, operation::RELEASE, ino);
        reply.ok();
        // Before it is counted, so that it is never counted twice.
        drop(entry);
        if let Some(slot) = Node::of(ino.0).and_then(Node::slot) {
            self.slots.released(slot);
        }
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let _entry = self.begin(request, operation::OPENDIR, ino);
        // The kernel then opens directories by itself, and keeps what it read of them.
        reply.error(Errno::ENOSYS);
    }

    fn readdir(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let part = (offset, DIRECTORY_BYTES);
        let entry = self.begin_with(request, operation::READDIR, ino, part, b"");
        self.when_there(ino, move |fs| fs.list(ino, offset, reply, entry));
    }

    fn readdirplus(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let part = (offset, DIRECTORY_BYTES);
        let entry = self.begin_with(request, operation::READDIRPLUS, ino, part, b"");
        self.when_there(ino, move |fs| {
            fs.list_and_look_up(ino, offset, reply, entry);
        });
    }

    fn statfs(&self, request: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let _entry = self.begin(request, operation::STATFS, ino);
        let (blocks, files) = match self.file(ino) {
            Some((slot, _)) => image(&slot).map_or((0, 0), |image| {
                (image.device_len() / 512, image.inode_count())
            }),
            None => (0, 0),
        };
        reply.statfs(blocks, 0, 0, files, 0, 512, 255, 512);
    }

    fn getxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        let part = (0, size);
        let entry = self.begin_with(request, operation::GETXATTR, ino, part, name.as_bytes());
        if self.manner.without_xattrs {
            // The kernel does not ask this session again.
            return reply.error(Errno::ENOSYS);
        }
        let name = name.as_bytes();
        if self.must_wait(ino) {
            let name = name.to_vec();
            return self.later(ino, move |fs| fs.tell_xattr(ino, &name, size, reply, entry));
        }
        self.tell_xattr(ino, name, size, reply, entry);
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let part = (0, size);
        let entry = self.begin_with(request, operation::LISTXATTR, ino, part, b"");
        self.when_there(ino, move |fs| fs.list_xattrs(ino, size, reply, entry));
    }
}

/// The answers themselves. The entry of the request goes after the reply.
impl LarderFs {
    fn look_up(&self, parent: INodeNo, name: &[u8], reply: ReplyEntry, _entry: Option<Entry>) {
        let node = Node::of(parent.0).and_then(|parent| self.child(parent, name));
        let Some((node, attributes)) = node.and_then(|node| Some((node, self.attributes(node)?)))
        else {
            if self.or_lost(parent, Errno::ENOENT) != Errno::ENOENT {
                return reply.error(Errno::EIO);
            }
            let in_image = matches!(Node::of(parent.0), Some(Node::File(..)));
            if in_image {
                // Inode 0 is a negative entry the kernel keeps.
                return reply.entry(&FOREVER, &tree::nothing(), GENERATION);
            }
            return reply.error(Errno::ENOENT);
        };
        if let Some(slot) = node.slot() {
            self.slots.looked_up(slot, 1);
        }
        reply.entry(&FOREVER, &attributes, GENERATION);
    }

    fn open_file(&self, ino: INodeNo, reply: ReplyOpen, _entry: Option<Entry>) {
        let Some((node, number)) = Node::of(ino.0).and_then(|node| Some((node, node.slot()?)))
        else {
            return reply.error(Errno::EISDIR);
        };
        let Some(slot) = self.slots.get(number) else {
            return reply.error(self.or_lost(ino, Errno::ENOENT));
        };
        let is_device = matches!(node, Node::Device(_));
        if self.manner.without_opens && !is_device {
            return reply.error(Errno::ENOSYS);
        }
        self.slots.opened(number);
        let is_faulty = matches!(slot.content, Content::Faulty(_));
        let flags = if is_device && !is_faulty && self.manner.reads == DeviceReads::Direct {
            FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH
        } else {
            FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH
        };
        reply.opened(FileHandle(0), flags);
    }

    fn read_part(&self, ino: INodeNo, offset: u64, size: u32, reply: Later) {
        let node = Node::of(ino.0);
        let slot = node
            .and_then(Node::slot)
            .and_then(|slot| self.slots.get(slot));
        match (node, slot) {
            (Some(Node::File(number, nid)), Some(slot)) => {
                Self::read_file(&slot, nid, offset, size, reply);
                if let (Some(ahead), 0) = (&self.ahead, offset) {
                    ahead.read(number, nid);
                }
            }
            (Some(Node::Device(_)), Some(slot)) => Self::read_device(&slot, offset, size, reply),
            _ => reply.error(self.or_lost(ino, Errno::EBADF)),
        }
    }

    fn list(&self, ino: INodeNo, offset: u64, mut reply: ReplyDirectory, _entry: Option<Entry>) {
        let Some((slot, nid)) = self.file(ino) else {
            return match Node::of(ino.0).and_then(Node::slot) {
                Some(_) => reply.error(self.or_lost(ino, Errno::EBADF)),
                None => Self::read_top(ino, offset, reply),
            };
        };
        let Some(Node::File(number, _)) = Node::of(ino.0) else {
            return reply.error(Errno::EBADF);
        };
        let Some(image) = image(&slot) else {
            return reply.error(Errno::EBADF);
        };
        for entry in image.read_dir(nid, offset) {
            let ino = INodeNo(Node::File(number, entry.nid).number());
            let kind = tree::file_type(entry.file_type);
            if reply.add(ino, entry.next, kind, OsStr::from_bytes(entry.name)) {
                break;
            }
        }
        reply.ok();
    }

    fn list_and_look_up(
        &self,
        ino: INodeNo,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
        _entry: Option<Entry>,
    ) {
        let Some(Node::File(number, nid)) = Node::of(ino.0) else {
            // The session's own directories are for nobody to list; they are looked up.
            return reply.ok();
        };
        let Some(slot) = self.slots.get(number) else {
            return reply.error(self.or_lost(ino, Errno::ENOENT));
        };
        let Some(image) = image(&slot) else {
            return reply.error(Errno::EBADF);
        };
        let mut lookups = 0;
        let mut files = Vec::new();
        let mut is_end = true;
        for entry in image.read_dir(nid, offset) {
            let Some(inode) = image.inode(entry.nid) else {
                continue;
            };
            let node = Node::File(number, entry.nid);
            let attributes = tree::attributes(node, &inode);
            let (ino, name) = (INodeNo(node.number()), OsStr::from_bytes(entry.name));
            if reply.add(ino, entry.next, name, &FOREVER, &attributes, GENERATION) {
                break;
            }
            is_end = false;
            if inode.file_type == erofs::FileType::Regular {
                files.push((entry.nid, inode.size));
            }
            // The kernel takes no reference to "." and "..".
            lookups += u64::from(!entry.is_dot());
        }
        self.slots.looked_up(number, lookups);
        reply.ok();
        match &self.ahead {
            Some(ahead) if is_end => ahead.listed_all(number, nid, image),
            Some(ahead) => ahead.listed(number, nid, offset == 0, files.into_iter()),
            None => {}
        }
    }

    fn tell_xattr(
        &self,
        ino: INodeNo,
        name: &[u8],
        size: u32,
        reply: ReplyXattr,
        _entry: Option<Entry>,
    ) {
        let file = self.file(ino);
        let value = file
            .as_ref()
            .and_then(|(slot, nid)| image(slot)?.xattr(*nid, name));
        match value {
            Some(value) => send_xattr(value, size, reply),
            None => reply.error(self.or_lost(ino, Errno::ENODATA)),
        }
    }

    fn list_xattrs(&self, ino: INodeNo, size: u32, reply: ReplyXattr, _entry: Option<Entry>) {
        let mut names = Vec::new();
        if let Some((slot, nid)) = self.file(ino) {
            for xattr in image(&slot).into_iter().flat_map(|image| image.xattrs(nid)) {
                names.extend(xattr.name());
                names.push(0);
            }
        } else if self.or_lost(ino, Errno::ENODATA) != Errno::ENODATA {
            return reply.error(Errno::EIO);
        }
        send_xattr(&names, size, reply);
    }

    /// Lists a directory of the session itself.
    fn read_top(ino: INodeNo, offset: u64, mut reply: ReplyDirectory) {
        if Node::of(ino.0) == Some(Node::Root) && offset == 0 {
            for (at, node, name) in [(1, Node::Devices, "dev"), (2, Node::Trees, "tree")] {
                let full = reply.add(INodeNo(node.number()), at, FileType::Directory, name);
                if full {
                    break;
                }
            }
        }
        reply.ok();
    }
}

fn send_xattr(value: &[u8], size: u32, reply: ReplyXattr) {
    let len = u32::try_from(value.len()).unwrap_or(u32::MAX);
    if size == 0 {
        reply.size(len);
    } else if len > size {
        reply.error(Errno::ERANGE);
    } else {
        reply.data(value);
    }
}
