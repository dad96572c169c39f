//! The OCI distribution client Larder uses.
//!
//! A [`Client`] opens [`Repository`]s; their methods fetch and push manifests and blobs. Logging
//! in, mirrors, redirects and retries happen inside and are bounded by what [`ClientOptions`] say.

#![forbid(unsafe_code)]

mod artifact;
mod attempts;
mod auth;
mod authority;
mod blob;
mod body;
pub mod bounded;
mod calendar;
mod client;
pub mod clock;
mod connections;
mod counts;
mod credentials;
mod echo;
mod endpoint;
mod error;
mod exchange;
mod failures;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod hosts;
mod manifest;
mod names;
pub mod oci;
mod options;
mod plan;
mod proxies;
mod redirect;
mod reference;
mod referrers;
pub mod retry;
mod secret;
mod transport;
mod upload;

pub use artifact::{Attachment, CREATED, newest};
pub use blob::{Arrivals, BlobBody, Origin, RANGE_BYTES_MAX, Senders};
pub use client::{Client, ClientError, Repository};
pub use counts::RequestCounts;
pub use credentials::CREDENTIALS_BYTES_MAX;
pub use error::{Cause, RegistryError};
pub use manifest::{MANIFEST_BYTES_MAX, Manifest};
pub use names::{Names, SystemNames};
pub use options::{ClientOptions, HOSTS_DIR, Timeouts};
pub use proxies::Proxies;
pub use reference::{Reference, ReferenceError};
pub use retry::RetryPolicy;
pub use secret::Secret;
pub use transport::{PEM_BYTES_MAX, holds_authority};
pub use upload::{FileSource, UploadSource};
