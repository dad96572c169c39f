//! `mount` and `umount`: an image's root file system without containerd.
//!
//! One process owns a root directory and what is mounted from it. The first `mount` becomes that
//! process; later ones ask it over the control socket.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use larder_fuse::mount::{Unmount, mounts, refuse_foreign, unmount};
use larder_proto::grpc::control::control_client::ControlClient;
use larder_proto::grpc::control::{MountImageRequest, UnmountImageRequest};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::Code;
use tonic::transport::{Channel, Server};

use super::run::Signals;
use super::{MountArgs, start_log};
use crate::config::{Config, Driver, LogFormat, LogLevel, Overrides};
use crate::control::ImageControl;
use crate::mounter::Mounter;
use crate::plane::{MountingPlane, Plane};
use crate::registries::Registries;
use crate::socket::{self, Connector};

/// How often the parent of a detached process looks whether it has mounted.
const LOOK: Duration = Duration::from_millis(20);

/// How long it looks: the registry client's own deadlines end any attempt before.
const LOOK_MAX: Duration = Duration::from_mins(5);

/// Mounts, and unless detached waits for a signal and unmounts.
pub(super) async fn mount(args: MountArgs) -> anyhow::Result<()> {
    let target = directory(&args.directory)?;
    // Looked at here, so that a bad one is told by this process, not by one in the background.
    let config = config(&args)?;
    let mut control = control(&args.root);
    refuse_other_driver(&mut control, &args).await?;
    let request = MountImageRequest {
        reference: args.image.to_string(),
        target: text(&target)?,
        plain_http: args.plain_http,
    };
    match control.mount(request).await {
        Ok(_) => {
            if args.detach {
                return Ok(());
            }
            announce(&args, &target);
            Signals::new()?.received().await;
            unmount_by(&mut control, &args.root, &target).await
        }
        Err(status) if status.code() == Code::Unavailable => {
            if args.detach {
                return detach(&args, &target).await;
            }
            own(args, config, target).await
        }
        Err(status) => bail!("{}", status.message()),
    }
}

fn config(args: &MountArgs) -> anyhow::Result<Config> {
    let overrides = Overrides {
        root: Some(args.root.clone()),
        fs_driver: args.fs_driver,
        ..Overrides::default()
    };
    Ok(Config::load(args.config.as_deref(), &overrides)?)
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
        Err(status) if status.code() == Code::Unavailable => unmount_left(root, target),
        Err(status) => bail!("{}", status.message()),
    }
}

/// Unmounts what a process that is gone left at `target`.
fn unmount_left(root: &Path, target: &Path) -> anyhow::Result<()> {
    let canonical = std::fs::canonicalize(root).or_else(|_| std::path::absolute(root));
    let canonical = canonical.with_context(|| format!("find {}", root.display()))?;
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
    Ok(unmount(target, Unmount::Lazy)?)
}

/// Is the process of a root directory until the last image is unmounted or a signal comes.
async fn own(args: MountArgs, config: Config, target: PathBuf) -> anyhow::Result<()> {
    let signals = Signals::new()?;
    if args.background {
        // The caller's terminal and session must not take the mounts along.
        nix::unistd::setsid().context("leave the caller's session")?;
    }
    start_log(LogLevel::Warn, LogFormat::Text);
    let registries = Registries::new(&config.registry)?;
    let plane = Arc::new(MountingPlane::start(&config, registries.clone(), None).await?);
    let (listener, _bound) = socket::bind(&Config::control(&config.root))?;
    let owner = Arc::clone(&plane) as Arc<dyn Plane>;
    let mounter = Arc::new(Mounter::new(owner, registries, &config.root)?);
    let mounted = mounter
        .mount(&args.image.to_string(), &target, args.plain_http)
        .await;
    if let Err(error) = mounted {
        plane.shutdown().await;
        return Err(error.into());
    }
    let server = Server::builder()
        .add_service(ImageControl::server(Arc::clone(&mounter)))
        .serve_with_incoming(UnixListenerStream::new(listener));
    announce(&args, &target);
    let mut count = mounter.count();
    tokio::select! {
        served = server => served.context("serve the control socket")?,
        () = signals.received() => {}
        _ = count.wait_for(|count| *count == 0) => {}
    }
    mounter.unmount_all().await;
    plane.shutdown().await;
    Ok(())
}

/// Starts the owner as a process of its own, and waits until it has mounted.
async fn detach(args: &MountArgs, target: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(&args.root)?;
    let log = args.root.join("mount.log");
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("mount")
        .arg("--background")
        .arg("--root")
        .arg(&args.root);
    if let Some(driver) = args.fs_driver {
        let driver = format!("{driver:?}").to_lowercase();
        command.arg("--fs-driver").arg(driver);
    }
    if let Some(config) = &args.config {
        command.arg("--config").arg(config);
    }
    if args.plain_http {
        command.arg("--plain-http");
    }
    command.arg(args.image.to_string()).arg(target);
    let mut private = OpenOptions::new();
    private.write(true).create(true).truncate(true).mode(0o600);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(private.open(&log)?);
    let before = mounted_at(target)?;
    let mut owner = command
        .spawn()
        .context("start the process that owns the mount")?;
    let begin = std::time::Instant::now();
    while mounted_at(target)? <= before {
        if let Some(status) = owner.try_wait()? {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            let said = said.trim().trim_start_matches("larder-snapshotter: ");
            bail!("{said} ({status})");
        }
        ensure!(
            begin.elapsed() < LOOK_MAX,
            "not mounted after {LOOK_MAX:?}; see {}",
            log.display()
        );
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// How many mounts lie at `target`, one over the other.
fn mounted_at(target: &Path) -> anyhow::Result<usize> {
    let table = mounts()?;
    let there = table.iter().filter(|mount| mount.target == target);
    Ok(there.count())
}

fn directory(path: &Path) -> anyhow::Result<PathBuf> {
    let found = match std::fs::canonicalize(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!(
                "{} does not exist: make the directory first",
                path.display()
            )
        }
        found => found.with_context(|| format!("mount at {}", path.display()))?,
    };
    ensure!(found.is_dir(), "{} is not a directory", found.display());
    Ok(found)
}

/// The place a path leads to, however it is written. A mount whose process died cannot be looked
/// at itself, only the directory it is in.
fn place(path: &Path) -> anyhow::Result<PathBuf> {
    if let Ok(place) = std::fs::canonicalize(path) {
        return Ok(place);
    }
    let path = std::path::absolute(path)?;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(path);
    };
    let parent = std::fs::canonicalize(parent);
    Ok(parent.map_or_else(|_| path.clone(), |parent| parent.join(name)))
}

fn text(path: &Path) -> anyhow::Result<String> {
    Ok(path
        .to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))?
        .to_owned())
}
