//! The OCI image layout: blobs named by digest, and an index of names.
//!
//! ```text
//! DIR/oci-layout   DIR/index.json   DIR/blobs/sha256/<hex>
//! ```

mod archive;
mod directory;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use larder_proto::digest::Digest;
use larder_registry::oci::{Descriptor, ImageIndex, media_type};

pub use archive::{ArchiveDestination, tar_entry};
pub use directory::LayoutDestination;

use crate::files::{ArchiveError, Files, Window};

/// Annotation of an entry of `index.json` that holds its name.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Where containerd puts an image's full name when it exports one.
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// The name an image gets when none is asked for.
pub const DEFAULT_TAG: &str = "latest";

/// What `oci-layout` holds.
const MARKER: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// Largest `index.json` that is read, bytes: ten thousand names.
const INDEX_BYTES_MAX: u64 = 4 << 20;

/// A layout that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// There is nothing, or something else.
    #[error("{} is not an OCI image layout: it has no {missing}", path.display())]
    NotALayout {
        /// The directory or archive.
        path: PathBuf,
        /// The file that is missing.
        missing: &'static str,
    },
    /// The index of names is damaged.
    #[error("{}/index.json is malformed: {reason}", path.display())]
    Index {
        /// The directory or archive.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The name is not there, or none was given and there are several.
    #[error("{} {reason}", path.display())]
    NoSuchImage {
        /// The directory or archive.
        path: PathBuf,
        /// What was asked for, and what there is.
        reason: String,
    },
    /// A blob a document names is not there.
    #[error("{} lacks blob {digest}", path.display())]
    NoSuchBlob {
        /// The directory or archive.
        path: PathBuf,
        /// The blob.
        digest: Digest,
    },
    /// The archive is damaged.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A directory full of other things.
    #[error(
        "{} is not empty and is not an OCI image layout: give a directory of its own",
        .0.display()
    )]
    Occupied(PathBuf),
    /// A name that other tools would not take.
    #[error(
        "{name:?} cannot name an image in {}: use letters, digits and any of -._:@/+",
        path.display()
    )]
    Name {
        /// The directory or archive.
        path: PathBuf,
        /// The name that was given.
        name: String,
    },
    /// The file system refused.
    #[error("cannot {doing} {}: {error}", path.display())]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
}

/// A layout as a source.
#[derive(Debug)]
pub struct LayoutSource {
    files: Files,
    root: Descriptor,
    unnamed: Vec<Descriptor>,
}

impl LayoutSource {
    /// Opens the image `tag`, or the only one.
    pub fn open(files: Files, tag: Option<&str>) -> Result<Self, LayoutError> {
        let index = read_index(&files)?.ok_or_else(|| LayoutError::NotALayout {
            path: files.path().to_owned(),
            missing: "index.json",
        })?;
        let root = choose(&index, tag)
            .cloned()
            .ok_or_else(|| LayoutError::NoSuchImage {
                path: files.path().to_owned(),
                reason: not_among(tag, index.manifests.len(), &names(&index)),
            })?;
        let mut unnamed = index.manifests;
        unnamed.retain(|entry| !entry.annotations.contains_key(REF_NAME) && *entry != root);
        Ok(Self {
            files,
            root,
            unnamed,
        })
    }

    /// The entries without a name, apart from the image: what refers to an image is among them.
    pub fn unnamed(&self) -> &[Descriptor] {
        &self.unnamed
    }

    /// The descriptor of the image.
    pub fn root(&self) -> &Descriptor {
        &self.root
    }

    /// A blob of the layout.
    pub fn blob(&self, digest: &Digest) -> Result<Window, LayoutError> {
        let path = || self.files.path().to_owned();
        let found = self.files.open(&blob_name(digest));
        found
            .map_err(|error| LayoutError::Io {
                doing: "read",
                path: path(),
                error,
            })?
            .ok_or_else(|| LayoutError::NoSuchBlob {
                path: path(),
                digest: *digest,
            })
    }
}

/// The entry of an index with this name; without a name the only one, or the one called `latest`.
fn choose<'a>(index: &'a ImageIndex, tag: Option<&str>) -> Option<&'a Descriptor> {
    let named = |tag: &str| {
        index.manifests.iter().find(|entry| {
            [REF_NAME, CONTAINERD_NAME]
                .iter()
                .any(|key| entry.annotations.get(*key).is_some_and(|name| name == tag))
        })
    };
    match (tag, index.manifests.as_slice()) {
        (Some(tag), _) => named(tag),
        (None, [only]) => Some(only),
        (None, _) => named(DEFAULT_TAG),
    }
}

fn names(index: &ImageIndex) -> Vec<&str> {
    let names = index
        .manifests
        .iter()
        .filter_map(|entry| entry.annotations.get(REF_NAME));
    names.map(String::as_str).collect()
}

/// Why an image is not found among `images` ones of which some have these names.
pub(crate) fn not_among(wanted: Option<&str>, images: usize, names: &[&str]) -> String {
    let all = match names {
        [] => "no names".into(),
        names => names.join(", "),
    };
    match (wanted, images) {
        (_, 0) => "has no images".into(),
        (Some(wanted), _) => format!("has no image {wanted}; it has: {all}"),
        (None, images) => format!("has {images} images, so name one of them; it has: {all}"),
    }
}

fn read_index(files: &Files) -> Result<Option<ImageIndex>, LayoutError> {
    let path = files.path().to_owned();
    let io = |error| LayoutError::Io {
        doing: "read",
        path: path.clone(),
        error,
    };
    let Some(window) = files.open("index.json").map_err(io)? else {
        return Ok(None);
    };
    let refuse = |reason: String| LayoutError::Index {
        path: path.clone(),
        reason,
    };
    if window.len() > INDEX_BYTES_MAX {
        return Err(refuse(format!("it is {} bytes long", window.len())));
    }
    let index = serde_json::from_reader(std::io::BufReader::new(window.reader()));
    index.map(Some).map_err(|error| refuse(error.to_string()))
}

/// `index` with `root` under the name `tag` and `referrers` without one; other names stay.
fn named(
    index: Option<ImageIndex>,
    root: Descriptor,
    tag: &str,
    referrers: &[Descriptor],
) -> ImageIndex {
    let mut index = index.unwrap_or_else(|| {
        let mut index = ImageIndex::new(Vec::new());
        index.media_type = Some(media_type::OCI_INDEX.into());
        index
    });
    let digests: Vec<_> = referrers.iter().map(|entry| entry.digest).collect();
    index
        .manifests
        .retain(|entry| match entry.annotations.get(REF_NAME) {
            Some(name) => name != tag,
            None => entry.digest != root.digest && !digests.contains(&entry.digest),
        });
    let mut entry = root;
    entry.annotations.insert(REF_NAME.into(), tag.into());
    index.manifests.push(entry);
    index.manifests.extend_from_slice(referrers);
    index
}

/// Whether an image may get this name; the grammar of the specification's annotation.
fn check_name(path: &Path, name: &str) -> Result<(), LayoutError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:@/+".contains(&byte);
    if name.bytes().all(fits) {
        return Ok(());
    }
    Err(LayoutError::Name {
        path: path.to_owned(),
        name: name.to_owned(),
    })
}

fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> LayoutError {
    let path = path.to_owned();
    move |error| LayoutError::Io { doing, path, error }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}
