//! `run`: the daemon.

use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::config::Config;
use crate::control::Control;
use crate::service::Service;
use crate::snapshots::Snapshots;
use crate::store::Store;
use crate::{notify, socket};

/// How long running requests may take to end after a signal. Each is short; what hangs is cut off.
const DRAIN: Duration = Duration::from_secs(3);

/// Serves until SIGTERM or SIGINT.
pub(super) async fn run(config: Config) -> anyhow::Result<()> {
    // The store's lock comes first: it is what makes this the only process on the root directory.
    let store = Store::open(&config.root)?;
    // Requests queue on the socket while the state is restored.
    let (listener, _bound) = socket::bind(&config.address)?;
    let (control, _control) = socket::bind(&Config::control(&config.root))?;
    let snapshots = Snapshots::start(store, None).await?;
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
    notify::ready();
    tracing::info!(
        address = %config.address.display(),
        root = %config.root.display(),
        "ready for containerd"
    );
    let signals = async {
        wait_for_signal().await?;
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
    tracing::info!("stopped");
    Ok(())
}

async fn wait_for_signal() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
