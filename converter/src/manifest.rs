//! Documents: manifests and indexes with their bytes, and the parts of a config we look at.

use larder_proto::digest::Digest;
use larder_registry::oci::{Descriptor, ImageIndex, Manifest, Platform, media_type};
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::Value;

/// Largest manifest that is read, bytes: the limit the distribution specification asks registries
/// to accept at least.
pub const MANIFEST_BYTES_MAX: u64 = 4 << 20;

/// Largest config blob that is read, bytes. Real ones are below 100 KB; histories of thousands of
/// steps stay below this.
pub const CONFIG_BYTES_MAX: u64 = 8 << 20;

/// A manifest or index, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Its digest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Document {
    /// A document from its bytes.
    pub fn new(media_type: impl Into<String>, bytes: Vec<u8>) -> Self {
        Self {
            digest: Digest::of(&bytes),
            media_type: media_type.into(),
            bytes,
        }
    }

    /// Its descriptor.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor::new(
            self.media_type.clone(),
            self.digest,
            self.bytes.len() as u64,
        )
    }
}

/// What a document is.
#[derive(Debug, Clone)]
pub enum Parsed {
    /// One image, or something else with a config and layers.
    Manifest(Box<Manifest>),
    /// Several.
    Index(Box<ImageIndex>),
}

/// A document that cannot be converted or copied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// It is not JSON of the right shape.
    #[error("manifest {digest} is malformed: {reason}")]
    Malformed {
        /// Which one.
        digest: Digest,
        /// What is wrong with it.
        reason: String,
    },
    /// It is in Docker's format of before 2016.
    #[error(
        "manifest {0} is of Docker's schema 1, which cannot be converted; \
         pull it with a current Docker or skopeo and push it again first"
    )]
    SchemaOne(Digest),
}

impl Parsed {
    /// Reads a document.
    pub fn parse(document: &Document) -> Result<Self, ManifestError> {
        let digest = document.digest;
        let refuse = |reason: String| ManifestError::Malformed { digest, reason };
        let value: Value =
            serde_json::from_slice(&document.bytes).map_err(|error| refuse(error.to_string()))?;
        if value.get("schemaVersion").and_then(Value::as_u64) == Some(1) {
            return Err(ManifestError::SchemaOne(digest));
        }
        let has = |name: &str| value.get(name).is_some_and(|field| !field.is_null());
        let index = |bytes| ImageIndex::parse(bytes).map(|index| Self::Index(Box::new(index)));
        // A document that is both could mean one thing to us and another to a runtime.
        match (has("manifests"), has("config"), has("layers")) {
            (true, false, false) => index(&document.bytes),
            (false, true, _) => {
                let manifest = Manifest::parse(&document.bytes);
                manifest.map(|manifest| Self::Manifest(Box::new(manifest)))
            }
            (false, false, _) if media_type::is_index(&document.media_type) => {
                index(&document.bytes)
            }
            (true, ..) => {
                return Err(refuse(
                    "it is an image and an index at the same time".into(),
                ));
            }
            (false, false, _) => {
                return Err(refuse(
                    "it has neither a config nor a list of manifests".into(),
                ));
            }
        }
        .map_err(|error| refuse(error.to_string()))
    }
}

/// Whether an index lists a manifest as what BuildKit says about how another one was made.
pub fn is_attestation(entry: &Descriptor) -> bool {
    let kind = entry.annotations.get("vnd.docker.reference.type");
    kind.is_some_and(|kind| kind == "attestation-manifest")
}

/// A platform as people write it: `os/architecture[/variant]`.
pub fn platform_text(platform: &Platform) -> String {
    let Platform {
        os,
        architecture,
        variant,
        ..
    } = platform;
    match variant {
        Some(variant) => format!("{os}/{architecture}/{variant}"),
        None => format!("{os}/{architecture}"),
    }
}

/// The part of an image config that decides what is converted, and how it is checked.
#[derive(Debug, Clone, Deserialize)]
pub struct ImageConfig {
    /// Operating system, architecture and variant.
    #[serde(flatten)]
    pub platform: Platform,
    /// What the layers decompress to.
    #[serde(default)]
    pub rootfs: RootFs,
    /// How a container of the image is started; whoever looks at it must expect anything.
    #[serde(default)]
    pub config: Value,
}

/// The layers, by their tars.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct RootFs {
    /// Digests of the uncompressed layers, the lowest first.
    #[serde(default, deserialize_with = "digests")]
    pub diff_ids: Vec<Digest>,
}

fn digests<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Digest>, D::Error> {
    let texts = Option::<Vec<String>>::deserialize(from)?.unwrap_or_default();
    texts
        .iter()
        .map(|text| text.parse().map_err(D::Error::custom))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Parsed, ManifestError> {
        Parsed::parse(&Document::new(media_type::OCI_MANIFEST, text.into()))
    }

    #[test]
    fn documents_of_no_shape_or_of_two_are_refused() {
        let config = r#""config":{"mediaType":"x","digest":"sha256:00","size":1}"#;
        for (text, why) in [
            ("not json".to_owned(), "expected"),
            ("[]".to_owned(), "neither"),
            (r#"{"schemaVersion":2}"#.to_owned(), "neither"),
            (
                r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(),
                "schema 1",
            ),
            (
                format!(r#"{{"schemaVersion":2,"manifests":[],{config}}}"#),
                "same time",
            ),
            (format!(r#"{{"schemaVersion":2,{config}}}"#), "digest"),
        ] {
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert!(matches!(
            parse(r#"{"schemaVersion":2,"manifests":[]}"#),
            Ok(Parsed::Index(_))
        ));
    }
}
