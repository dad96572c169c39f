//! Where an image is, as a user names it on the command line.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use larder_proto::digest::Digest;
use larder_registry::{Reference, ReferenceError};

/// The place of an image: a transport with what it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// `HOST/REPO:TAG` or `HOST/REPO@DIGEST`.
    Registry(Reference),
    /// `oci:DIR[:TAG]`: a directory in the OCI image layout.
    Layout {
        /// The directory.
        dir: PathBuf,
        /// The name in `index.json`; none means the only image there is.
        tag: Option<String>,
    },
    /// `oci-archive:FILE[:TAG]`: the same in a tar.
    LayoutArchive {
        /// The tar.
        file: PathBuf,
        /// The name in `index.json`; none means the only image there is.
        tag: Option<String>,
    },
    /// `docker-archive:FILE[:REF]`: what `docker save` writes.
    DockerArchive {
        /// The tar.
        file: PathBuf,
        /// The image's name in it; none means the only image there is.
        reference: Option<String>,
    },
    /// `containerd:REF`: an image of the local containerd, by the long name it has there.
    Containerd(String),
}

/// A text that does not say where an image is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    /// The name in a registry is malformed.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A transport without a path.
    #[error("{0:?} lacks a path after its first colon")]
    NoPath(String),
    /// A transport of another tool.
    #[error(
        "{0:?} names a transport larder does not have; it has HOST/REPO:TAG, oci:, oci-archive:, docker-archive: and containerd:"
    )]
    Transport(String),
}

/// Transports of skopeo that would otherwise be taken for the name of an image.
const FOREIGN: [&str; 6] = [
    "docker-daemon",
    "containers-storage",
    "dir",
    "ostree",
    "sif",
    "tarball",
];

impl FromStr for Location {
    type Err = LocationError;

    fn from_str(text: &str) -> Result<Self, LocationError> {
        let Some((transport, rest)) = text.split_once(':') else {
            return Ok(Self::Registry(text.parse()?));
        };
        let path = || {
            let (path, name) = match rest.split_once(':') {
                Some((path, name)) if !name.is_empty() => (path, Some(name.to_owned())),
                Some((path, _)) => (path, None),
                None => (rest, None),
            };
            if path.is_empty() {
                return Err(LocationError::NoPath(text.into()));
            }
            Ok((PathBuf::from(path), name))
        };
        match transport {
            "oci" => path().map(|(dir, tag)| Self::Layout { dir, tag }),
            "oci-archive" => path().map(|(file, tag)| Self::LayoutArchive { file, tag }),
            "docker-archive" => {
                path().map(|(file, reference)| Self::DockerArchive { file, reference })
            }
            "containerd" => image_name(rest).map(Self::Containerd),
            "docker" => Ok(Self::Registry(rest.trim_start_matches('/').parse()?)),
            foreign if FOREIGN.contains(&foreign) => Err(LocationError::Transport(text.into())),
            _ => Ok(Self::Registry(text.parse()?)),
        }
    }
}

/// The name containerd gives an image: the long form of a reference, as `ctr` and nerdctl have it,
/// or the image ID with which CRI lists it a second time.
fn image_name(text: &str) -> Result<String, LocationError> {
    if text.parse::<Digest>().is_ok() {
        return Ok(text.into());
    }
    Ok(text.parse::<Reference>()?.to_string())
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (transport, path, name) = match self {
            Self::Registry(reference) => return write!(f, "{reference}"),
            Self::Containerd(name) => return write!(f, "containerd:{name}"),
            Self::Layout { dir, tag } => ("oci", dir, tag),
            Self::LayoutArchive { file, tag } => ("oci-archive", file, tag),
            Self::DockerArchive { file, reference } => ("docker-archive", file, reference),
        };
        write!(f, "{transport}:{}", path.display())?;
        name.as_ref().map_or(Ok(()), |name| write!(f, ":{name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_transport_survives_its_text_form() {
        for text in [
            "docker.io/library/alpine:3",
            "localhost:5000/a/b:c",
            "oci:/tmp/dir",
            "oci:dir:tag",
            "oci-archive:a.tar:v1",
            "docker-archive:a.tar:example.org/a:v1",
            "containerd:docker.io/library/alpine:3",
        ] {
            let location: Location = text.parse().unwrap();
            assert_eq!(location.to_string(), text);
            assert_eq!(location.to_string().parse(), Ok(location));
        }
    }

    /// Promise: containerd's images are found by the short names people type.
    #[test]
    fn containerd_knows_images_by_their_long_names() {
        let long = |text: &str| text.parse::<Location>().unwrap().to_string();
        assert_eq!(
            long("containerd:alpine"),
            "containerd:docker.io/library/alpine:latest"
        );
        let id = format!("containerd:{}", Digest::of(b"image"));
        assert_eq!(long(&id), id);
    }

    #[test]
    fn what_names_no_image_is_refused() {
        for text in [
            "",
            "oci:",
            "oci-archive::tag",
            "containerd:",
            "docker-daemon:alpine",
            "UPPER/a b",
        ] {
            assert!(text.parse::<Location>().is_err(), "{text:?}");
        }
    }
}
