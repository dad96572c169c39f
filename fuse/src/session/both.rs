//! The session of devices and trees, and the one of trees without extended attributes.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::state::{SessionState, StateError, Told};
use super::{FuseMount, Manner, Slots};
use crate::config::DeviceReads;
use crate::driver::{Driver, DriverReport};
use crate::supervisor::Handover;

/// Names of what a supervisor keeps. The main session's device comes last: once it is there,
/// everything is.
const COUNTS: &str = "counts";
const PLAIN: Names = Names {
    state: "state-plain",
    journal: "journal-plain",
    device: "fuse-plain",
};
const MAIN: Names = Names {
    state: "state-main",
    journal: "journal-main",
    device: crate::supervisor::MAIN_SESSION,
};

struct Names {
    state: &'static str,
    journal: &'static str,
    device: &'static str,
}

/// What the FUSE driver serves through, or only devices.
#[derive(Debug)]
pub(crate) struct Sessions {
    main: FuseMount,
    plain: Option<FuseMount>,
}

/// Sessions that cannot be taken over. They stay as they are.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TakeOverError {
    /// By their state.
    #[error(transparent)]
    State(#[from] StateError),
    /// A part of them is not there.
    #[error("the supervisor holds no {0:?}")]
    Missing(&'static str),
    /// A system call failed.
    #[error("{0}")]
    System(#[from] io::Error),
}

/// Sessions of a daemon before, known but not entered.
#[derive(Debug)]
pub(crate) struct Inherited {
    pub(crate) slots: Arc<Slots>,
    pub(crate) driver: DriverReport,
    pub(crate) told: Told,
    /// Which version of the state the daemon before wrote.
    pub(crate) version: u32,
    main: Part,
    plain: Option<Part>,
}

/// What there is of one session.
#[derive(Debug)]
struct Part {
    device: OwnedFd,
    journal: Option<OwnedFd>,
    state: SessionState,
}

impl Part {
    fn of(handover: &Handover, names: &Names) -> Result<Option<Self>, TakeOverError> {
        let Some(device) = handover.take(names.device) else {
            return Ok(None);
        };
        let state = handover.take(names.state);
        let state = state.ok_or(TakeOverError::Missing(names.state))?;
        Ok(Some(Self {
            device,
            journal: handover.take(names.journal),
            state: SessionState::read(state)?,
        }))
    }
}

impl Inherited {
    /// What `handover` has of them.
    pub(crate) fn from(handover: &Handover) -> Result<Self, TakeOverError> {
        let counts = handover
            .take(COUNTS)
            .ok_or(TakeOverError::Missing(COUNTS))?;
        let counts = super::counts::Counts::of(counts)?;
        let plain = Part::of(handover, &PLAIN)?;
        let main = Part::of(handover, &MAIN)?;
        let main = main.ok_or(TakeOverError::Missing(MAIN.device))?;
        let driver = main.state.driver()?;
        if driver.driver == Driver::Fuse && plain.is_none() {
            return Err(TakeOverError::Missing(PLAIN.device));
        }
        Ok(Self {
            slots: Arc::new(Slots::counted_by(counts)),
            driver,
            told: main.state.told(),
            version: main.state.version(),
            main,
            plain,
        })
    }

    /// Enters them. Nothing is answered before [`Sessions::resume`].
    pub(crate) fn enter(
        self,
        path: &Path,
        reads: DeviceReads,
        resend: bool,
    ) -> io::Result<Sessions> {
        let trees = self.driver.driver == Driver::Fuse;
        let session = |path, part: Part, without_xattrs| {
            let manner = Manner {
                reads,
                without_opens: trees,
                without_xattrs,
                resend,
            };
            let Part {
                device,
                journal,
                state,
            } = part;
            let slots = self.slots.clone();
            FuseMount::take_over(path, slots, manner, device, state.exchange, journal)
        };
        let plain = self.plain.map(|plain| session(beside(path), plain, true));
        Ok(Sessions {
            plain: plain.transpose()?,
            main: session(path.to_owned(), self.main, false)?,
        })
    }
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
        resend: bool,
    ) -> io::Result<Self> {
        let manner = Manner {
            reads,
            without_opens: true,
            without_xattrs: false,
            resend,
        };
        let main = FuseMount::mount(path, slots, manner)?;
        let manner = Manner {
            without_xattrs: true,
            ..manner
        };
        match FuseMount::mount(&beside(path), slots, manner) {
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

    /// Has the kernel send again, in all sessions, what was read and not answered; then answers.
    pub(crate) fn resume(&self) -> io::Result<()> {
        self.try_each(FuseMount::resend)?;
        self.try_each(FuseMount::serve)
    }

    /// Gives everything the next daemon needs to the supervisor.
    pub(crate) fn hold(
        &self,
        handover: &Handover,
        slots: &Slots,
        driver: &DriverReport,
        told: Told,
    ) -> io::Result<()> {
        handover.hold(COUNTS, slots.counts());
        let parts = [(self.plain.as_ref(), PLAIN), (Some(&self.main), MAIN)];
        for (session, names) in parts {
            let Some(session) = session else { continue };
            let state = SessionState::new(driver, session.exchange().clone(), told);
            handover.hold(names.state, state.write()?);
            if let Some(journal) = session.journal() {
                handover.hold(names.journal, journal);
            }
            handover.hold(names.device, session.device());
        }
        Ok(())
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

    /// All places where a slot may be seen.
    pub(crate) fn places(&self, slot: u32) -> Vec<PathBuf> {
        let name = slot.to_string();
        match &self.plain {
            None => vec![self.path().join("dev").join(name)],
            Some(plain) => [self.path(), plain.path()]
                .map(|session| session.join("tree").join(&name))
                .into(),
        }
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

    /// Asks the kernel to give back pages of the device in a slot, which EROFS has as its own where it read them.
    pub(crate) fn give_back_pages(&self, slot: u32, ranges: Vec<Range<u64>>) {
        self.main.give_back_pages(slot, ranges);
    }

    /// Where all of them are mounted.
    pub(crate) fn all_paths(&self) -> Vec<&Path> {
        let plain = self.plain.as_ref().map(FuseMount::path);
        [self.path()].into_iter().chain(plain).collect()
    }

    /// Takes the mounts away from the name space; whoever has files open keeps them.
    pub(crate) fn detach(&self) {
        self.each(FuseMount::detach);
    }

    fn each(&self, act: impl Fn(&FuseMount)) {
        act(&self.main);
        self.plain.iter().for_each(act);
    }

    fn try_each(&self, act: impl Fn(&FuseMount) -> io::Result<()>) -> io::Result<()> {
        act(&self.main)?;
        self.plain.iter().try_for_each(act)
    }
}

fn beside(path: &Path) -> PathBuf {
    path.with_file_name("session-plain")
}
