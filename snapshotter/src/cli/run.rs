//! `run`: the supervisor, and the daemon it keeps alive.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use larder_fuse::stderr;
use larder_fuse::supervisor::{self, Bidding, Handover, Note};
use larder_proto::grpc::control::control_server::ControlServer;
use larder_proto::moment::moment;
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use super::signals::Signals;
use super::{RunArgs, block_on, output};
use crate::config::{self, Config, InForce, Kept, LogFormat, LogLevel, OldConfiguration};
use crate::containerd::Containerd;
use crate::control::Control;
use crate::lazy::Lazy;
use crate::log;
use crate::metrics::{self, Metrics};
use crate::plane::{MountingPlane, Plane};
use crate::registries::Registries;
use crate::reporter::Reporter;
use crate::service::Service;
use crate::snapshots::Snapshots;
use crate::socket::{self, Bound};
use crate::store::{Store, StoreError};

/// How long running requests may take to end after a signal. Each is short; what hangs is cut off.
const DRAIN: Duration = Duration::from_secs(3);

/// How long a daemon before this one may take to let go of the database. It is being killed: that is
/// a matter of milliseconds, unless a thread of it waits for an answer that this daemon gives first.
const RELEASE: Duration = Duration::from_secs(3);

/// How often that is looked for.
const LOOK: Duration = Duration::from_millis(10);

/// What the supervisor calls the sockets.
const GRPC: &str = "grpc";
const CONTROL: &str = "control";

/// What the supervisor calls the configuration of the latest daemon that served.
const CONFIGURATION: &str = "configuration";

/// The flag by which the supervisor asks the program that is installed now whether it could start. Builds
/// before and after this one are asked the same: never another name.
const CHECK: &str = "--check-config";

/// Supervises, and returns the exit code in the end; `None` in the daemon itself.
pub(super) fn supervise() -> Option<ExitCode> {
    if supervisor::is_supervised() {
        return None;
    }
    stderr::tell_panics();
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let supervised = std::env::current_exe()
        .map_err(supervisor::SuperviseError::from)
        .and_then(|program| supervisor::supervise(&program, &arguments, CHECK, log_json));
    Some(match supervised {
        Ok(code) => code.into(),
        Err(error) => {
            stderr::say(&error.to_string());
            stderr::flush(stderr::LAST_WORDS_MAX);
            ExitCode::FAILURE
        }
    })
}

/// Has the supervisor's own lines, which are few and warnings, written as JSON.
fn log_json() {
    log::start(LogLevel::Warn, LogFormat::Json);
}

/// Looks at everything that a daemon looks at before it serves and that does not change anything.
pub(super) fn check(args: &RunArgs) -> anyhow::Result<()> {
    let file = args.config.clone();
    // Told by systemd and by the supervisor, at a reload: which supervisor that is.
    let running = std::env::var(supervisor::MAIN_PROCESS).ok();
    let running = running.and_then(|process| Kept::of_process(&process));
    let config = Config::load_beside(file.as_deref(), &args.overrides(), running.as_ref())?;
    config.check_disk()?;
    block_on(async move {
        let registries = Registries::for_layers(&config.registry)?;
        for wrong in registries.check_hosts().await {
            // No reason to stay down: it is read anew again and again, and concerns that registry alone.
            eprintln!("larder-snapshotter: {wrong}");
        }
        anyhow::Ok(())
    })?;
    let default = || Some(config::DEFAULT_PATH.into()).filter(|path: &PathBuf| path.exists());
    output::print(&match file.or_else(default) {
        Some(path) => format!("the configuration {} can be used\n", path.display()),
        None => format!(
            "there is no {}; the defaults can be used\n",
            config::DEFAULT_PATH
        ),
    })
}

/// Serves until the supervisor or a signal ends it.
pub(super) fn daemon(args: &RunArgs) -> anyhow::Result<()> {
    stderr::tell_panics();
    let handover = Handover::receive().context("hear from the supervisor")?;
    let handover = Arc::new(handover.context("the supervisor is gone")?);
    let before = handover.take(CONFIGURATION).and_then(Kept::open);
    let in_force = InForce::load(args.config.as_deref(), &args.overrides(), before)?;
    let config = &in_force.config;
    log::start(config.log_level, config.log_format);
    abort_with_fuse_threads();
    if config.log_format == LogFormat::Json {
        handover.logs_json();
    }
    for Note { text, is_orderly } in handover.notes() {
        if *is_orderly {
            tracing::info!("{text}");
        } else {
            tracing::warn!("{text}");
        }
    }
    if let Some(OldConfiguration { since, why }) = &in_force.old {
        tracing::error!(
            since = moment(*since),
            reason = why,
            "the configuration cannot be used; going on with the last one that could: mend it and reload"
        );
    }
    let ended = block_on(run(in_force, Arc::clone(&handover)));
    if ended.is_ok() {
        leave();
    }
    if handover.takes_over() {
        // What is left is for the next daemon; an orderly end would answer requests with errors.
        if let Err(error) = &ended {
            tracing::error!("{error:#}");
        }
        stderr::flush(stderr::LAST_WORDS_MAX);
        std::process::exit(1);
    }
    ended
}

/// Ends this process at once, in order, with everything logged if somebody reads it.
fn leave() -> ! {
    stderr::flush(stderr::FAREWELL_MAX);
    std::process::exit(0);
}

/// Has the whole process end when a FUSE thread does: the next daemon answers what nobody here would.
/// A panic elsewhere costs one request an error.
fn abort_with_fuse_threads() {
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        told(panic);
        let thread = std::thread::current();
        if thread.name().is_some_and(|name| name.starts_with("fuser-")) {
            std::process::abort();
        }
    }));
}

async fn run(in_force: InForce, handover: Arc<Handover>) -> anyhow::Result<()> {
    let InForce { config, kept, old } = in_force;
    // Before anything else, so that a signal during the start ends in order, too.
    let signals = Signals::new()?;
    let stop = bidding(Arc::clone(&handover));
    // Before anything is written there.
    config.check_disk()?;
    let containerd = Containerd::new(config.containerd.clone());
    let reporter = Arc::new(Reporter::new(containerd.clone()));
    let mut store = None;
    if !handover.takes_over() {
        // The store's lock comes first: it is what makes this the only process on the root directory.
        store = Some(open(&config).await?);
    }
    // After a death containers wait, and the supervisor held the root's lock all the while.
    let (given, observer) = (Arc::clone(&handover), Arc::clone(&reporter));
    let plane = MountingPlane::open(&config, Some(given), Some(observer)).await?;
    let store = match store {
        Some(store) => store,
        None => open(&config).await?,
    };
    // Requests queue on the sockets while the state is restored.
    let activated = handover.take_activated();
    let sockets = Sockets::of(&config, &handover, activated)?;
    let registries = Registries::for_layers(&config.registry)?;
    let requests = Arc::clone(registries.counts());
    let plane = Arc::new(MountingPlane::on(
        plane,
        &config,
        registries,
        Some(containerd.clone()),
    ));
    let lazy = Lazy::new(Arc::clone(&plane) as Arc<dyn Plane>, &config);
    let snapshots = Snapshots::start(store, Some(Arc::new(lazy))).await?;
    reporter.know(Arc::clone(snapshots.store()));
    let metrics = config.metrics.clone().map(|address| {
        let published = Arc::clone(reporter.published());
        let figures = Metrics::new(snapshots.clone(), requests, published);
        let figures = figures.with_old_configuration(old.is_some());
        tokio::spawn(metrics::serve(address, figures))
    });
    serves(&handover, &kept, old.as_ref());
    tracing::info!(
        address = %config.address.display(),
        root = %config.root.display(),
        after = ?handover.began().elapsed(),
        "ready for containerd"
    );
    let survey = Arc::clone(snapshots.survey());
    let store = Arc::clone(snapshots.store());
    // Ends with the process; containerd, which is mostly not there yet, is not waited for.
    tokio::spawn(survey.keep_comparing(store, containerd, config.address.clone()));
    let end = async {
        tokio::select! {
            () = signals.received() => End::HandOver,
            _ = stop => End::Stop,
        }
    };
    let control = Control::server(snapshots.clone(), old);
    let (bound, end) = serve(snapshots, control, sockets, end).await?;
    metrics.inspect(tokio::task::JoinHandle::abort);
    match end {
        End::Stop => {
            // What is in the store is written down; the next start mounts everything at the same paths.
            plane.shutdown().await;
            drop(bound);
            tracing::info!("stopped");
            Ok(())
        }
        End::HandOver => {
            plane.hand_over().await;
            tracing::info!("leaving everything to the next daemon");
            handover.leaves();
            leave();
        }
    }
}

/// Leaves what this daemon serves with to the next one, and says that it serves.
fn serves(handover: &Handover, kept: &Kept, old: Option<&OldConfiguration>) {
    match kept.seal() {
        Ok(sealed) => handover.hold(CONFIGURATION, sealed),
        Err(error) => tracing::warn!(%error, "cannot keep the configuration for the next daemon"),
    }
    let status = old.map_or("serving".to_owned(), |old| format!("serving {old}"));
    handover.ready(&status);
}

/// How this daemon ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// With everything it mounted.
    Stop,
    /// For another one.
    HandOver,
}

/// Resolves when the supervisor wants the end.
fn bidding(handover: Arc<Handover>) -> oneshot::Receiver<()> {
    let (told, stop) = oneshot::channel();
    std::thread::spawn(move || match handover.bidding() {
        Bidding::Stop => drop(told.send(())),
        // Being killed already; nothing is left to anybody.
        Bidding::Gone => std::process::exit(1),
    });
    stop
}

/// Opens the store, once nobody else has it.
async fn open(config: &Config) -> Result<Store, StoreError> {
    let until = Instant::now() + RELEASE;
    loop {
        match Store::open(&config.root) {
            Err(error) if error.is_in_use() && Instant::now() < until => {
                tokio::time::sleep(LOOK).await;
            }
            opened => return opened,
        }
    }
}

/// The sockets requests come in by.
struct Sockets {
    grpc: UnixListener,
    control: UnixListener,
    bound: Vec<Bound>,
}

impl Sockets {
    /// Those of a daemon before, or new ones, which the supervisor keeps from now on.
    fn of(
        config: &Config,
        handover: &Handover,
        activated: Option<OwnedFd>,
    ) -> anyhow::Result<Self> {
        let mut bound = Vec::new();
        let mut listen = |name, path: &std::path::Path| -> anyhow::Result<UnixListener> {
            let held = handover.take(name);
            let (listener, file) = match held.and_then(|held| socket::held(held, path)) {
                Some(held) => held,
                None => socket::bind(path)?,
            };
            handover.hold(name, &listener);
            bound.push(file);
            Ok(listener)
        };
        let control = listen(CONTROL, &Config::control(&config.root))?;
        let grpc = match activated {
            // systemd's, file and all.
            Some(socket) => socket::listen(socket)?,
            None => listen(GRPC, &config.address)?,
        };
        Ok(Self {
            grpc,
            control,
            bound,
        })
    }
}

/// Serves until `end`, and for what is under way then a little longer.
async fn serve(
    snapshots: Snapshots,
    control: ControlServer<Control>,
    sockets: Sockets,
    end: impl Future<Output = End>,
) -> anyhow::Result<(Vec<Bound>, End)> {
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let mut drained = stopped.clone();
    let serving = Server::builder()
        .add_service(Service::server(snapshots))
        .serve_with_incoming_shutdown(UnixListenerStream::new(sockets.grpc), async move {
            drop(stopped.wait_for(|stop| *stop).await);
        });
    let control = Server::builder()
        .add_service(control)
        .serve_with_incoming(UnixListenerStream::new(sockets.control));
    let control = tokio::spawn(control);
    let mut ends = End::Stop;
    let ended = async {
        ends = end.await;
        stop.send_replace(true);
        anyhow::Ok(())
    };
    let cut_off = async {
        drop(drained.wait_for(|stop| *stop).await);
        tokio::time::sleep(DRAIN).await;
    };
    let serving = async { serving.await.context("serve containerd") };
    tokio::select! {
        served = async { tokio::try_join!(serving, ended) } => {
            served?;
        }
        () = cut_off => tracing::warn!("some requests did not end in time"),
    }
    control.abort();
    Ok((sockets.bound, ends))
}
