//! `run`: the daemon.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::config::Config;
use crate::containerd::Containerd;
use crate::control::Control;
use crate::lazy::Lazy;
use crate::metrics::{self, Metrics};
use crate::plane::{MountingPlane, Plane};
use crate::registries::Registries;
use crate::reporter::Reporter;
use crate::service::Service;
use crate::snapshots::Snapshots;
use crate::store::Store;
use crate::{notify, socket};

/// How long running requests may take to end after a signal. Each is short; what hangs is cut off.
const DRAIN: Duration = Duration::from_secs(3);

/// Serves until SIGTERM or SIGINT.
pub(super) async fn run(config: Config) -> anyhow::Result<()> {
    // Before anything else, so that a signal during the start ends in order, too.
    let signals = Signals::new()?;
    // Before anything is written there.
    config.check_disk()?;
    // The store's lock comes first: it is what makes this the only process on the root directory.
    let store = Store::open(&config.root)?;
    // Requests queue on the socket while the state is restored.
    let (listener, _bound) = socket::bind(&config.address)?;
    let (control, _control) = socket::bind(&Config::control(&config.root))?;
    let registries = Registries::for_layers(&config.registry)?;
    let requests = Arc::clone(registries.counts());
    let containerd = Containerd::new(config.containerd.clone());
    let reporter = Arc::new(Reporter::new(containerd.clone()));
    let observer = Arc::clone(&reporter);
    let plane = MountingPlane::start(&config, registries, Some(containerd), Some(observer)).await?;
    let plane = Arc::new(plane);
    let lazy = Lazy::new(Arc::clone(&plane) as Arc<dyn Plane>, &config);
    let snapshots = Snapshots::start(store, Some(Arc::new(lazy))).await?;
    reporter.know(Arc::clone(snapshots.store()));
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let mut drained = stopped.clone();
    let serving = Server::builder()
        .add_service(Service::server(snapshots.clone()))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async move {
            drop(stopped.wait_for(|stop| *stop).await);
        });
    let control = Server::builder()
        .add_service(Control::server(snapshots.clone()))
        .serve_with_incoming(UnixListenerStream::new(control));
    let control = tokio::spawn(control);
    let metrics = config.metrics.clone().map(|address| {
        let published = Arc::clone(reporter.published());
        let figures = Metrics::new(snapshots.clone(), requests, published);
        tokio::spawn(metrics::serve(address, figures))
    });
    notify::ready();
    tracing::info!(
        address = %config.address.display(),
        root = %config.root.display(),
        "ready for containerd"
    );
    let signals = async {
        signals.received().await;
        stop.send_replace(true);
        anyhow::Ok(())
    };
    let cut_off = async {
        drop(drained.wait_for(|stop| *stop).await);
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        served = async { tokio::try_join!(async { serving.await.context("serve containerd") }, signals) } => {
            served?;
        }
        () = cut_off => tracing::warn!("some requests did not end in time"),
    }
    control.abort();
    metrics.inspect(tokio::task::JoinHandle::abort);
    // What is in the store is written down; the next start mounts everything at the same paths.
    plane.shutdown().await;
    tracing::info!("stopped");
    Ok(())
}

/// The signals that end the program.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on, they no longer kill.
    pub(super) fn new() -> anyhow::Result<Self> {
        let (terminate, interrupt) = (SignalKind::terminate(), SignalKind::interrupt());
        Ok(Self {
            terminate: signal(terminate)?,
            interrupt: signal(interrupt)?,
        })
    }

    /// Waits for one.
    pub(super) async fn received(mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
