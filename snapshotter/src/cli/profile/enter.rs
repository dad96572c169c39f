//! `profile enter`: the program of an image, in namespaces of its own.
//!
//! ```text
//! record ─▶ enter: new mount, pid, ipc, uts namespaces ─▶ enter --inside: pid 1, /proc, /dev, /tmp, chroot ─▶ the program
//!    └ holds its standard input: at its end, all of it ends
//! ```

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use anyhow::{Context, bail};
use larder_registry::bounded;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{Mode, OFlags};

/// What most images expect, where they say nothing.
const SEARCHED: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Devices that programs find everywhere.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// How often it is looked whether the program has ended.
const LOOK: Duration = Duration::from_millis(20);

/// Options of `profile enter`; `record` is its only caller.
#[derive(Debug, clap::Args)]
pub(in super::super) struct EnterArgs {
    /// Be the first process inside.
    #[arg(long)]
    inside: bool,
    /// Who runs it: a name or number, with or without a group behind a colon.
    #[arg(long)]
    user: Option<String>,
    /// Where it runs.
    #[arg(long, default_value = "/")]
    directory: PathBuf,
    /// Its environment.
    #[arg(long)]
    env: Vec<String>,
    /// The image.
    root: PathBuf,
    /// The program.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Runs the program to its end, or to that of standard input.
pub(super) fn enter(args: &EnterArgs) -> anyhow::Result<()> {
    if args.inside {
        return inside(args);
    }
    // Before the new pid namespace, in which this process itself may have no threads.
    let gone = end_of_input();
    let apart = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    unshare(apart).context("make namespaces for the program")?;
    change("/", MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
    let mut command = Command::new(std::env::current_exe()?);
    let words = std::env::args_os().skip(3);
    command.args(["profile", "enter", "--inside"]).args(words);
    let mut child = command.stdin(Stdio::null()).spawn()?;
    let ended = until_the_end(&mut child, &gone)?;
    if ended.success() {
        return Ok(());
    }
    std::process::exit(ended.code().unwrap_or(1));
}

/// Tells when nobody holds the other end of standard input any more.
fn end_of_input() -> Receiver<()> {
    let (told, gone) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut rest = Vec::new();
        drop(std::io::stdin().lock().read_to_end(&mut rest));
        let _ = told.send(());
    });
    gone
}

/// Waits for the program, and kills it when whoever wants it is gone.
fn until_the_end(child: &mut Child, gone: &Receiver<()>) -> anyhow::Result<ExitStatus> {
    loop {
        if let Some(ended) = child.try_wait()? {
            return Ok(ended);
        }
        if gone.recv_timeout(LOOK).is_ok() {
            // With the first process of a namespace go all.
            child.kill()?;
            child.wait()?;
            std::process::exit(0);
        }
    }
}

/// As the first process of the namespace: what a program expects to find, then the program.
fn inside(args: &EnterArgs) -> anyhow::Result<()> {
    let devices = devices()?;
    // From here on every path, also one that the image has as a link, is one of the image.
    std::os::unix::fs::chroot(&args.root)
        .with_context(|| format!("enter {}", args.root.display()))?;
    std::env::set_current_dir("/")?;
    place("/proc", "proc", "")?;
    place("/dev", "tmpfs", "mode=755,size=1m")?;
    for (name, device) in devices {
        let path = Path::new("/dev").join(name);
        File::create(&path).with_context(|| format!("make {}", path.display()))?;
        let from = PathBuf::from(format!("/proc/self/fd/{}", device.as_raw_fd()));
        let bound = mount(
            Some(&from),
            &path,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        );
        bound.with_context(|| format!("make {}", path.display()))?;
    }
    for (name, to) in [
        ("fd", "fd"),
        ("stdin", "fd/0"),
        ("stdout", "fd/1"),
        ("stderr", "fd/2"),
    ] {
        let to = Path::new("/proc/self").join(to);
        std::os::unix::fs::symlink(to, Path::new("/dev").join(name))?;
    }
    place("/dev/shm", "tmpfs", "mode=1777,size=64m")?;
    place("/tmp", "tmpfs", "mode=1777")?;
    program(args)
}

/// Descriptors of this machine's devices, those that it has.
fn devices() -> anyhow::Result<Vec<(&'static str, OwnedFd)>> {
    let mut found = Vec::new();
    for name in DEVICES {
        let path = Path::new("/dev").join(name);
        // Kept across the change of the root, and not across the program's start.
        match rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
            Ok(device) => found.push((name, device)),
            Err(rustix::io::Errno::NOENT) => {}
            Err(error) => bail!("open {}: {error}", path.display()),
        }
    }
    Ok(found)
}

/// A file system of `kind` at a directory, which is made where the image has none.
fn place(at: &str, kind: &str, options: &str) -> anyhow::Result<()> {
    match fs::create_dir_all(at) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("make {at} in the image"));
        }
        _ => {}
    }
    let flags = MsFlags::MS_NOSUID;
    let mounted = mount(Some(kind), at, Some(kind), flags, Some(options));
    mounted.with_context(|| format!("mount {kind} at {at} of the image"))
}

fn change(at: &str, flags: MsFlags) -> anyhow::Result<()> {
    let changed = mount(None::<&str>, at, None::<&str>, flags, None::<&str>);
    changed.context("keep the program's mounts to itself")
}

/// Becomes the program.
fn program(args: &EnterArgs) -> anyhow::Result<()> {
    let [name, arguments @ ..] = &args.command[..] else {
        bail!("no program");
    };
    fs::create_dir_all(&args.directory)
        .with_context(|| format!("make {} in the image", args.directory.display()))?;
    let mut command = Command::new(name);
    command.args(arguments).current_dir(&args.directory);
    command.env_clear();
    for variable in [SEARCHED, "HOME=/root"]
        .into_iter()
        .chain(args.env.iter().map(String::as_str))
    {
        if let Some((key, value)) = variable.split_once('=').filter(|(key, _)| !key.is_empty()) {
            command.env(key, value);
        }
    }
    if let Some(user) = &args.user {
        let (user, group) = identity(user)?;
        command.uid(user).gid(group);
    }
    let error = command.exec();
    Err(error).with_context(|| format!("run {name} in the image"))
}

/// Numbers of a user and a group, by the image's own files where they are names.
fn identity(text: &str) -> anyhow::Result<(u32, u32)> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let line = entry("/etc/passwd", user);
    let number = |fields: &Option<Vec<String>>, place: usize| -> Option<u32> {
        fields.as_ref()?.get(place)?.parse().ok()
    };
    let known = number(&line, 2).or_else(|| user.parse().ok());
    let known = known.with_context(|| format!("the image has no user {user}"))?;
    let group = match group {
        None => number(&line, 3).unwrap_or(0),
        Some(group) => number(&entry("/etc/group", group), 2)
            .or_else(|| group.parse().ok())
            .with_context(|| format!("the image has no group {group}"))?,
    };
    Ok((known, group))
}

/// Longest list of users or groups that is read, bytes: forty thousand of them.
const USERS_BYTES_MAX: u64 = 4 << 20;

/// The line of a name in a file such as /etc/passwd, by its fields.
fn entry(file: &str, name: &str) -> Option<Vec<String>> {
    let text = bounded::read_text(Path::new(file), USERS_BYTES_MAX).ok()?;
    let mut lines = text
        .lines()
        .map(|line| line.split(':').map(str::to_owned).collect());
    lines.find(|fields: &Vec<String>| fields.first().is_some_and(|first| first == name))
}
