//! The server that metrics are read from: two pages, few connections, short patience.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{debug, info, warn};

use super::{Form, Metrics};
use crate::socket;

/// Connections at once: two collectors, a person, and some that hang. Others are closed at once.
const CONNECTIONS_MAX: usize = 8;

/// Bytes of a request's head: hyper's own minimum, and ten times what collectors send.
const HEAD_BYTES_MAX: usize = 8 << 10;

/// How long a head may take: collectors give the whole exchange ten seconds.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// How long one connection may live: one request, by a reader as slow as collectors bear.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(15);

/// How often an address that is taken is tried again. After an upgrade the former process may hold
/// it for a moment; metrics are no reason not to serve containers.
const RETRY_EVERY: Duration = Duration::from_secs(5);

/// Where metrics are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetricsAddress {
    /// A loopback address with its port.
    Loopback(SocketAddr),
    /// A Unix socket, by its absolute path.
    Socket(PathBuf),
}

impl fmt::Display for MetricsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback(address) => address.fmt(f),
            Self::Socket(path) => path.display().fmt(f),
        }
    }
}

impl FromStr for MetricsAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = text.strip_prefix("unix:").unwrap_or(text);
        if path.starts_with('/') {
            return match path.len() {
                0..=socket::PATH_BYTES_MAX => Ok(Self::Socket(path.into())),
                _ => Err(format!(
                    "{path} is longer than {} bytes",
                    socket::PATH_BYTES_MAX
                )),
            };
        }
        let address: SocketAddr = text.parse().map_err(|_| {
            format!("{text:?} is neither ADDRESS:PORT nor the absolute path of a socket")
        })?;
        if !address.ip().is_loopback() {
            return Err(format!(
                "{address} can be reached from other machines, and metrics are not protected: use \
                 127.0.0.1, [::1] or a socket, with a proxy before it that lets in whom you want"
            ));
        }
        Ok(Self::Loopback(address))
    }
}

/// Serves `metrics` at `address` until it is dropped.
pub async fn serve(address: MetricsAddress, metrics: Metrics) {
    let turns = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut told = false;
    loop {
        let ended = match &address {
            MetricsAddress::Loopback(at) => serve_tcp(*at, &metrics, &turns).await,
            MetricsAddress::Socket(path) => serve_socket(path, &metrics, &turns).await,
        };
        let Err(error) = ended;
        if !told {
            warn!(%address, error, "metrics cannot be served; trying again every five seconds");
            told = true;
        }
        tokio::time::sleep(RETRY_EVERY).await;
    }
}

async fn serve_tcp(
    address: SocketAddr,
    metrics: &Metrics,
    turns: &Arc<Semaphore>,
) -> Result<Infallible, String> {
    let listener = TcpListener::bind(address).await;
    let listener = listener.map_err(|error| error.to_string())?;
    info!(%address, "serving metrics");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => answer(stream, metrics, turns),
            Err(error) => pause(&error).await,
        }
    }
}

async fn serve_socket(
    path: &std::path::Path,
    metrics: &Metrics,
    turns: &Arc<Semaphore>,
) -> Result<Infallible, String> {
    let (listener, _bound) = socket::bind(path).map_err(|error| error.to_string())?;
    info!(address = %path.display(), "serving metrics");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => answer(stream, metrics, turns),
            Err(error) => pause(&error).await,
        }
    }
}

/// No descriptors are left, mostly: trying at once would only burn the processor.
async fn pause(error: &io::Error) {
    debug!(%error, "a reader of metrics was not let in");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// Answers one connection on a task of its own, if there is a turn for it.
fn answer<S>(stream: S, metrics: &Metrics, turns: &Arc<Semaphore>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Ok(turn) = Arc::clone(turns).try_acquire_owned() else {
        return;
    };
    tokio::spawn(converse(stream, metrics.clone(), turn));
}

async fn converse<S>(stream: S, metrics: Metrics, _turn: OwnedSemaphorePermit)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request| {
        let metrics = metrics.clone();
        async move { Ok::<_, Infallible>(respond(request, metrics).await) }
    });
    let conversation = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_TIMEOUT, conversation).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "a reader of metrics broke off"),
        Err(_) => debug!("a reader of metrics was too slow"),
    }
}

async fn respond(request: Request<Incoming>, metrics: Metrics) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    if !matches!(path, "/metrics" | "/healthz") {
        return plain(StatusCode::NOT_FOUND, "there are /metrics and /healthz\n");
    }
    if request.method() != Method::GET {
        let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered\n");
        let get = hyper::header::HeaderValue::from_static("GET");
        refused.headers_mut().insert(ALLOW, get);
        return refused;
    }
    if path == "/healthz" {
        return plain(StatusCode::OK, "ok\n");
    }
    let accepted = request.headers().get(ACCEPT);
    let accepted = accepted.and_then(|value| value.to_str().ok());
    let open = accepted.is_some_and(|value| value.contains("application/openmetrics-text"));
    let form = if open { Form::OpenMetrics } else { Form::Text };
    // It reads the database.
    let written = tokio::task::spawn_blocking(move || metrics.page(form)).await;
    match written {
        Ok(Ok(page)) => {
            let kind = match form {
                Form::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
                Form::Text => "text/plain; version=0.0.4; charset=utf-8",
            };
            typed(StatusCode::OK, kind, page)
        }
        Ok(Err(error)) => {
            warn!(%error, "the database of snapshots cannot be read for metrics");
            plain(StatusCode::INTERNAL_SERVER_ERROR, "see the log\n")
        }
        Err(_) => plain(StatusCode::SERVICE_UNAVAILABLE, "shutting down\n"),
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    typed(status, "text/plain; charset=utf-8", text.to_owned())
}

fn typed(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
