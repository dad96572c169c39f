//! `mount` and `umount`: an image's root file system without containerd.
//!
//! One process owns a root directory and what is mounted from it. The first `mount` becomes that
//! process; later ones ask it over the control socket. Of several first ones, the lock of the root
//! decides, and the others ask the winner.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use larder_fuse::mount::{Unmount, clear_left, mounts, refuse_foreign, unmount};
use larder_fuse::{Observer, OpenStoreError, StartError, private_directory};
use larder_proto::grpc::control::control_client::ControlClient;
use larder_proto::grpc::control::{MountImageRequest, UnmountImageRequest};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Server};
use tonic::{Code, Status};

use super::MountArgs;
use super::signals::Signals;
use super::watch;
use crate::config::{Config, Driver, LogLevel, Overrides};
use crate::control::ImageControl;
use crate::log;
use crate::mounter::{ImageNames, Mounter};
use crate::plane::{MountingPlane, Plane, StartPlaneError};
use crate::registries::Registries;
use crate::socket::{self, Connector};

/// How often who lost the race for the root looks whether the winner answers.
const LOOK: Duration = Duration::from_millis(20);

/// How long it looks, and how long the parent of a detached process waits until that has mounted: the registry
/// client's own deadlines end any attempt before.
const LOOK_MAX: Duration = Duration::from_mins(5);

/// How long an owner that ends waits for its last replies to be read: a caller that is stopped must not keep it.
const REPLIES_MAX: Duration = Duration::from_secs(2);

/// How often an owner looks whether its root and its images are still there: nobody waits for it.
const ROOT_LOOK: Duration = Duration::from_secs(2);

/// What of the environment names files that are read later.
const PATHS: [&str; 4] = [
    "DOCKER_CONFIG",
    "REGISTRY_AUTH_FILE",
    "XDG_RUNTIME_DIR",
    "HOME",
];

/// What a detached process says once the image is there.
const MOUNTED: &[u8] = b"mounted\n";

/// Size at which the log of an owner is begun anew, bytes: warnings of years.
const LOG_BYTES_MAX: u64 = 1 << 20;

/// Mounts, and unless detached waits for a signal and unmounts.
pub(super) async fn mount(args: MountArgs) -> anyhow::Result<()> {
    let target = directory(&args.directory, &args.root)?;
    // Looked at here, so that a bad one is told by this process, not by one in the background.
    let config = config(&args)?;
    match ask(&args, &target).await? {
        Asked::Mounted => hold(&args, &target).await,
        Asked::Nobody if args.detach => detach(&args, &target).await,
        Asked::Nobody => {
            if args.background {
                // The caller's terminal and session must not take the mounts along.
                nix::unistd::setsid().context("leave the caller's session")?;
            }
            // The log of an owner in the background is a file that nobody rotates.
            let most = if args.background {
                LogLevel::Info
            } else {
                LogLevel::Trace
            };
            log::start(config.log_level.min(most), config.log_format);
            own_or_ask(&args, &config, &target).await
        }
    }
}

/// What became of asking the owner.
enum Asked {
    /// It has mounted the image.
    Mounted,
    /// There is no owner.
    Nobody,
}

/// Asks the owner of the root to mount, if there is one.
async fn ask(args: &MountArgs, target: &Path) -> anyhow::Result<Asked> {
    let mut control = control(&args.root);
    refuse_other_driver(&mut control, args).await?;
    let request = MountImageRequest {
        reference: args.image.to_string(),
        target: text(target)?,
        plain_http: args.plain_http,
    };
    match control.mount(request).await {
        Ok(_) => Ok(Asked::Mounted),
        Err(status) if is_gone(&status) => Ok(Asked::Nobody),
        Err(status) => bail!("{}", status.message()),
    }
}

/// Whether there is no owner, or, by the other two, it ended while it was asked.
fn is_gone(status: &Status) -> bool {
    let code = status.code();
    matches!(code, Code::Unavailable | Code::Unknown | Code::Cancelled)
}

/// Stays while an image that another process mounted is wanted.
async fn hold(args: &MountArgs, target: &Path) -> anyhow::Result<()> {
    if args.detach || args.background {
        return Ok(());
    }
    announce(args, target);
    Signals::new()?.received().await;
    unmount_by(&mut control(&args.root), &args.root, target).await
}

/// Becomes the owner; who finds that another process was faster asks that one, which answers once its
/// own image is mounted, or goes.
async fn own_or_ask(args: &MountArgs, config: &Config, target: &Path) -> anyhow::Result<()> {
    let begin = std::time::Instant::now();
    loop {
        let lost = match own(args, config, target).await {
            Err(error) if is_locked(&error) => error,
            ended => return ended,
        };
        if let Asked::Mounted = ask(args, target).await? {
            return hold(args, target).await;
        }
        if begin.elapsed() > LOOK_MAX {
            return Err(lost.context(format!("no process answered within {LOOK_MAX:?}")));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether another process has the root.
fn is_locked(error: &anyhow::Error) -> bool {
    let started = error.downcast_ref::<StartPlaneError>();
    matches!(
        started,
        Some(StartPlaneError::Start(StartError::Store(
            OpenStoreError::Locked { .. }
        )))
    )
}

fn config(args: &MountArgs) -> anyhow::Result<Config> {
    let overrides = Overrides {
        root: Some(args.root.clone()),
        fs_driver: args.fs_driver,
        // A person looks at what it says.
        log_level_unsaid: LogLevel::Warn,
        ..Overrides::default()
    };
    let config = Config::load(args.config.as_deref(), &overrides)?;
    // Whoever looks at an image does not ask for all of it.
    Ok(Config {
        complete_in_background: false,
        ..config
    })
}

/// A process serves all its layers by one driver; another one cannot be had from it.
async fn refuse_other_driver(
    control: &mut ControlClient<Channel>,
    args: &MountArgs,
) -> anyhow::Result<()> {
    let Some(wanted) = args.fs_driver.and_then(Driver::name) else {
        return Ok(());
    };
    let Ok(status) = control.status(()).await else {
        return Ok(());
    };
    let driver = status.into_inner().driver;
    ensure!(
        driver == wanted,
        "the process that owns {} serves layers by {driver}: unmount its images first, or give \
         this one another --root",
        args.root.display()
    );
    Ok(())
}

/// Tells a person that the image is there, and how to get rid of it.
fn announce(args: &MountArgs, target: &Path) {
    if !args.background {
        eprintln!(
            "{} is mounted at {}; an interrupt unmounts it",
            args.image,
            target.display()
        );
    }
}

/// Unmounts an image, with or without a living owner; never anything else.
pub(super) async fn umount(root: &Path, at: &Path) -> anyhow::Result<()> {
    unmount_by(&mut control(root), root, &place(at)?).await
}

fn control(root: &Path) -> ControlClient<Channel> {
    ControlClient::new(Connector::channel(Config::control(root)))
}

async fn unmount_by(
    control: &mut ControlClient<Channel>,
    root: &Path,
    target: &Path,
) -> anyhow::Result<()> {
    let request = UnmountImageRequest {
        target: text(target)?,
    };
    match control.unmount(request).await {
        Ok(_) => Ok(()),
        // An owner that was killed while it was asked had unmounted, or had not.
        Err(status) if is_gone(&status) => {
            let has_ended = status.code() != Code::Unavailable;
            if has_ended && mounted_at(target)? == 0 {
                return Ok(());
            }
            unmount_left(root, target)
        }
        // An owner does not know what one before it left. What it does know, it keeps in its list
        // until it is unmounted.
        Err(status) if status.code() == Code::NotFound => {
            let root = canonical(root)?;
            // Below the root are the parts of what is mounted.
            let is_left = !target.starts_with(&root) && is_ours(target, &root)?;
            ensure!(is_left, "{}", status.message());
            Ok(unmount(target, Unmount::Lazy)?)
        }
        Err(status) => bail!("{}", status.message()),
    }
}

/// Whether an image of this root is mounted at `target`, whoever serves it.
fn is_ours(target: &Path, root: &Path) -> anyhow::Result<bool> {
    Ok(mounted_at(target)? > 0 && refuse_foreign(target, root).is_ok())
}

fn canonical(root: &Path) -> anyhow::Result<PathBuf> {
    let canonical = std::fs::canonicalize(root).or_else(|_| std::path::absolute(root));
    canonical.with_context(|| format!("find {}", root.display()))
}

/// Unmounts what a process that is gone left at `target`.
fn unmount_left(root: &Path, target: &Path) -> anyhow::Result<()> {
    let canonical = canonical(root)?;
    refuse_foreign(target, &canonical).with_context(|| {
        let root = root.display();
        format!("no process owns {root}; was the image mounted with another --root?")
    })?;
    ensure!(
        mounted_at(target)? > 0,
        "nothing is mounted at {}, and no process owns {}: was it mounted with another --root?",
        target.display(),
        root.display()
    );
    // One over the other, where an earlier build had mounted upon what was left.
    clear_left(target, &canonical, |_, _| false)?;
    Ok(())
}

/// Is the process of a root directory until the last image is unmounted or a signal comes.
async fn own(args: &MountArgs, config: &Config, target: &Path) -> anyhow::Result<()> {
    let signals = Signals::new()?;
    let registries = Registries::new(&config.registry)?;
    registries.check(&args.image).await?;
    let names = Arc::new(ImageNames::default());
    let observer = Arc::clone(&names) as Arc<dyn Observer>;
    let started = MountingPlane::start(config, registries.clone(), None, Some(observer));
    let plane = Arc::new(started.await?);
    let _watcher = watch::start(&plane);
    let control = Config::control(&config.root);
    let (listener, _bound) = socket::bind(&control)?;
    let owner = Arc::clone(&plane) as Arc<dyn Plane>;
    let mounter = Mounter::new(owner, registries, &config.root, config.profiles)?;
    let mounter = Arc::new(mounter.naming(names));
    if args.background {
        // The caller's directory must not be busy for as long as the image is mounted, and he goes on as soon
        // as it is. Everything that is named by its path was made absolute.
        std::env::set_current_dir("/").context("leave the caller's directory")?;
    }
    let reference = args.image.to_string();
    let mut mounting = pin!(mounter.mount(&reference, target, args.plain_http));
    let mut signalled = pin!(signals.received());
    let (mounted, is_ended) = tokio::select! {
        mounted = &mut mounting => (mounted, false),
        () = &mut signalled => {
            mounter.end();
            (mounting.await, true)
        }
    };
    if is_ended || mounted.is_err() {
        mounter.unmount_all().await;
        plane.shutdown().await;
    }
    ensure!(
        !is_ended,
        "a signal came before {reference} was mounted; nothing is left of it"
    );
    mounted?;
    let (ending, end) = oneshot::channel::<()>();
    let server = Server::builder()
        .add_service(ImageControl::server(Arc::clone(&mounter)))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async {
            drop(end.await);
        });
    let mut server = tokio::spawn(server);
    announce(args, target);
    if args.background && !tell_parent() {
        // The command was ended, or said that it gave up: then there must be no mount later.
        tracing::warn!(image = %args.image, "nobody waits for it any more; unmounting");
        if let Err(error) = mounter.unmount(target).await {
            tracing::warn!(image = %args.image, %error, "it stays until somebody unmounts it");
        }
    }
    let served = tokio::select! {
        served = &mut server => Some(served),
        () = &mut signalled => None,
        () = emptied(&mounter) => None,
        () = cut_off(&mounter, &control) => None,
    };
    mounter.unmount_all().await;
    if served.is_none() {
        // Whoever had the last image unmounted is still to be told.
        drop(ending);
        drop(tokio::time::timeout(REPLIES_MAX, server).await);
    }
    plane.shutdown().await;
    served
        .unwrap_or(Ok(Ok(())))?
        .context("serve the control socket")
}

/// Resolves when the last image is unmounted; from then on none is mounted.
async fn emptied(mounter: &Mounter) {
    let mut count = mounter.count();
    // If not, another one was mounted meanwhile, and counted.
    while count.wait_for(|count| *count == 0).await.is_ok() && !mounter.close_if_empty().await {}
}

/// Resolves when nobody can reach this process any more, because its root was removed, and none of its
/// images is mounted: `umount` unmounts them without asking then. What is mounted is served as before.
async fn cut_off(mounter: &Mounter, socket: &Path) {
    loop {
        tokio::time::sleep(ROOT_LOOK).await;
        // The last one that somebody unmounted ends this process, as `umount` of it does.
        mounter.forget_unmounted().await;
        if socket.exists() {
            continue;
        }
        let images = mounter.list().await;
        // A table that cannot be read says nothing.
        let gone = |at: &Path| mounted_at(at).is_ok_and(|count| count == 0);
        if images.iter().all(|(_, at)| gone(at)) {
            tracing::warn!(socket = %socket.display(), "the root directory was removed; ending");
            return;
        }
    }
}

/// Starts the owner as a process of its own, and waits until it has mounted.
async fn detach(args: &MountArgs, target: &Path) -> anyhow::Result<()> {
    let made = private_directory(&args.root);
    made.with_context(|| format!("make the root directory {}", args.root.display()))?;
    let root = canonical(&args.root)?;
    let log = root.join("mount.log");
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("mount")
        .arg("--background")
        .arg("--root")
        .arg(&root);
    if let Some(driver) = args.fs_driver {
        let driver = format!("{driver:?}").to_lowercase();
        command.arg("--fs-driver").arg(driver);
    }
    if let Some(config) = &args.config {
        command.arg("--config").arg(std::path::absolute(config)?);
    }
    for name in PATHS {
        if let Some(path) = std::env::var_os(name).filter(|path| !path.is_empty()) {
            command.env(name, std::path::absolute(path)?);
        }
    }
    if args.plain_http {
        command.arg("--plain-http");
    }
    command.arg(args.image.to_string()).arg(target);
    // Another one may be starting, too, and write into the same log.
    let mut private = OpenOptions::new();
    let file = private.append(true).create(true).mode(0o600).open(&log)?;
    if file.metadata()?.len() > LOG_BYTES_MAX {
        file.set_len(0)?;
    }
    let written = file.metadata()?.len();
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command.stderr(file);
    let mut owner = command
        .spawn()
        .context("start the process that owns the mount")?;
    match timeout(LOOK_MAX, mounted(&mut owner)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(status)) => bail!("{} ({})", said(&log, written), status?),
        Err(_) => bail!("not mounted after {LOOK_MAX:?}; see {}", log.display()),
    }
}

/// Waits until a detached process has mounted, or has had another one mount that was faster; else how it ended.
async fn mounted(owner: &mut Child) -> Result<(), io::Result<ExitStatus>> {
    let mut word = [0; MOUNTED.len()];
    if let Some(told) = &mut owner.stdout
        && told.read_exact(&mut word).await.is_ok()
    {
        return Ok(());
    }
    match owner.wait().await {
        Ok(status) if status.success() => Ok(()),
        ended => Err(ended),
    }
}

/// Tells whoever started this process that the image is there; whether it heard it.
fn tell_parent() -> bool {
    let mut parent = io::stdout();
    let told = parent.write_all(MOUNTED).and_then(|()| parent.flush());
    if let Ok(nowhere) = File::options().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(nowhere);
    }
    told.is_ok()
}

/// What was written to a log after its first `written` bytes.
fn said(log: &Path, written: u64) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    let new = usize::try_from(written).ok().and_then(|at| bytes.get(at..));
    let new = String::from_utf8_lossy(new.unwrap_or_default());
    let new = new.trim().trim_start_matches("larder-snapshotter: ");
    new.to_owned()
}

/// How many mounts lie at `target`, one over the other.
fn mounted_at(target: &Path) -> anyhow::Result<usize> {
    let table = mounts()?;
    let there = table.iter().filter(|mount| mount.target == target);
    Ok(there.count())
}

/// The directory to mount at. What owners of this root left there is not looked at: it may hang, and is taken away
/// before anything is mounted.
fn directory(path: &Path, root: &Path) -> anyhow::Result<PathBuf> {
    let found = place(path)?;
    if is_ours(&found, &canonical(root)?)? {
        return Ok(found);
    }
    let kind = match std::fs::metadata(&found) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!(
                "{} does not exist: make the directory first",
                path.display()
            )
        }
        found => found.with_context(|| format!("mount at {}", path.display()))?,
    };
    ensure!(kind.is_dir(), "{} is not a directory", found.display());
    ensure!(
        found.parent().is_some(),
        "/ is the root of this machine, which the image would hide: make a directory for it"
    );
    Ok(found)
}

/// The place a path leads to, however it is written. A mount is not looked at, as its process may be dead, only the
/// directory it is in.
fn place(path: &Path) -> anyhow::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    if let (Some(parent), Some(name)) = (path.parent(), path.file_name())
        && let Ok(parent) = std::fs::canonicalize(parent)
    {
        let place = parent.join(name);
        return match mounted_at(&place)? {
            // It may be a link.
            0 => Ok(std::fs::canonicalize(&place).unwrap_or(place)),
            _ => Ok(place),
        };
    }
    Ok(std::fs::canonicalize(&path).unwrap_or(path))
}

fn text(path: &Path) -> anyhow::Result<String> {
    Ok(path
        .to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))?
        .to_owned())
}
