//! gRPC over a Unix socket.

use std::io;
use std::path::PathBuf;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use hyper_util::rt::TokioIo;
use tonic::codegen::Service;
use tonic::transport::{Channel, Endpoint, Uri};

/// Connects a gRPC channel to a socket; the address in requests is ignored.
#[derive(Debug, Clone)]
pub struct Connector {
    path: PathBuf,
}

impl Connector {
    /// A connector to the socket at `path`.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// A channel that connects when it is first used, and again whenever the peer went away.
    pub fn channel(path: PathBuf) -> Channel {
        // containerd's and tonic's servers both want a well-formed authority, any will do.
        Endpoint::from_static("http://localhost").connect_with_connector_lazy(Self::new(path))
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<tokio::net::UnixStream>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connecting = tokio::net::UnixStream::connect(self.path.clone());
        Box::pin(async { Ok(TokioIo::new(connecting.await?)) })
    }
}
