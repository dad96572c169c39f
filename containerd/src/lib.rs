//! containerd's services, as a client of its socket: content, images, leases, snapshots, and what it says of itself.

mod connector;
mod content;
mod events;
mod introspect;
mod session;

use std::io;
use std::path::PathBuf;

use tonic::transport::Channel;
use tonic::{Request, Status};

pub use connector::Connector;
pub use containerd_client::types::Descriptor;
pub use content::{Blob, ContentError};
pub use session::{CallError, SOURCE_PREFIX, STALLED_MAX, Session, WriteError, unique};

/// Nobody listens where containerd should.
#[derive(Debug, thiserror::Error)]
#[error("containerd does not answer at {}: {error}; is it running, and may this user talk to it? \
     Name its socket with --address or CONTAINERD_ADDRESS", .address.display())]
pub struct Unreachable {
    address: PathBuf,
    error: io::Error,
}

impl Unreachable {
    /// What the system said.
    pub fn cause(&self) -> &io::Error {
        &self.error
    }
}

/// A connection to containerd that is made when it is first needed.
#[derive(Debug, Clone)]
pub struct Containerd {
    channel: Channel,
    address: PathBuf,
}

impl Containerd {
    /// The containerd that listens at `address`.
    pub fn new(address: PathBuf) -> Self {
        let channel = Connector::channel(address.clone());
        Self { channel, address }
    }

    /// Its socket.
    pub fn address(&self) -> &std::path::Path {
        &self.address
    }

    /// Looks whether anybody listens, so that one who does not can be named with what to do.
    pub async fn reach(&self) -> Result<(), Unreachable> {
        let connected = tokio::net::UnixStream::connect(&self.address).await;
        connected.map(drop).map_err(|error| Unreachable {
            address: self.address.clone(),
            error,
        })
    }

    /// The channel, for clients of its services.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }
}

/// A request in a namespace.
pub fn within<T>(namespace: &str, message: T) -> Result<Request<T>, Status> {
    let mut request = Request::new(message);
    let value = namespace.parse();
    let value = value.map_err(|_| Status::invalid_argument(format!("namespace {namespace:?}")))?;
    request.metadata_mut().insert("containerd-namespace", value);
    Ok(request)
}
