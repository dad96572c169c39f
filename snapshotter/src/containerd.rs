//! containerd's own services, as a client of its socket.

mod content;
mod lookup;
mod session;

use std::path::PathBuf;

use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::socket::Connector;

pub use content::{Blob, ContentError};
pub use lookup::chain_ids;
pub(crate) use lookup::{Key, Lookup};
pub use session::{CallError, Session, WriteError, unique};

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
