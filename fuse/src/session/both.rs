//! The session of devices and trees, and the one of trees without extended attributes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{FuseMount, Manner, Slots};
use crate::config::DeviceReads;

/// What the FUSE driver serves through, or only devices.
#[derive(Debug)]
pub(crate) struct Sessions {
    main: FuseMount,
    plain: Option<FuseMount>,
}

impl Sessions {
    /// For the EROFS driver: `main` serves the devices, and nobody mounts trees.
    pub(crate) fn of_devices(main: FuseMount) -> Self {
        Self { main, plain: None }
    }

    /// Mounts both at `path` and beside it, for the FUSE driver.
    pub(crate) fn of_trees(
        path: &Path,
        slots: &Arc<Slots>,
        reads: DeviceReads,
    ) -> io::Result<Self> {
        let manner = Manner {
            reads,
            without_opens: true,
            without_xattrs: false,
        };
        let main = FuseMount::mount(path.to_owned(), slots.clone(), manner)?;
        let manner = Manner {
            without_xattrs: true,
            ..manner
        };
        let beside = path.with_file_name("session-plain");
        match FuseMount::mount(beside, slots.clone(), manner) {
            Ok(plain) => Ok(Self {
                main,
                plain: Some(plain),
            }),
            Err(error) => {
                main.detach();
                Err(error)
            }
        }
    }

    /// Where the devices are.
    pub(crate) fn path(&self) -> &Path {
        self.main.path()
    }

    /// Where the tree of a slot is.
    pub(crate) fn tree(&self, slot: u32, has_xattrs: bool) -> PathBuf {
        let session = match &self.plain {
            Some(plain) if !has_xattrs => plain,
            _ => &self.main,
        };
        session.path().join("tree").join(slot.to_string())
    }

    /// The same tree where the kernel asks for every attribute, if [`Sessions::tree`] is where it does not.
    pub(crate) fn asked_tree(&self, slot: u32, has_xattrs: bool) -> Option<PathBuf> {
        let tree = self.main.path().join("tree").join(slot.to_string());
        (self.plain.is_some() && !has_xattrs).then_some(tree)
    }

    /// Asks the kernel to forget the names of a slot that goes away. Not for FUSE threads.
    pub(crate) fn forget(&self, slot: u32) {
        self.each(|session| session.forget(slot));
    }

    /// Takes the mounts away from the name space; whoever has files open keeps them.
    pub(crate) fn detach(&self) {
        self.each(FuseMount::detach);
    }

    fn each(&self, act: impl Fn(&FuseMount)) {
        act(&self.main);
        self.plain.iter().for_each(act);
    }
}
