//! The JSON of a profile.

use std::fmt;

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{LayerReads, Profile, ProfileError, VERSION};
use crate::access::{ACCESSES_MAX, Access};

/// Characters of a complaint about the form that are repeated: serde quotes what it found.
const COMPLAINT_MAX: usize = 200;

/// What every version begins with.
#[derive(Deserialize)]
struct Versions {
    version: u32,
    readable_since: Option<u32>,
}

#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    readable_since: Option<u32>,
    #[serde(default)]
    image: String,
    layers: Vec<Layer>,
}

#[derive(Serialize, Deserialize)]
struct Layer {
    index: String,
    blob: String,
    diff_id: String,
    reads: Reads,
}

/// Reads with their times told as steps, which are short.
struct Reads(Vec<Access>);

impl Serialize for Reads {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut list = to.serialize_seq(Some(self.0.len()))?;
        let mut before = 0;
        for read in &self.0 {
            list.serialize_element(&(read.micros.saturating_sub(before), read.chunk))?;
            before = before.max(read.micros);
        }
        list.end()
    }
}

impl<'de> Deserialize<'de> for Reads {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_seq(InOrder)
    }
}

struct InOrder;

impl<'de> Visitor<'de> for InOrder {
    type Value = Reads;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of pairs of numbers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Reads, A::Error> {
        let mut reads = Vec::new();
        let mut micros = 0_u64;
        while let Some((step, chunk)) = list.next_element::<(u64, u32)>()? {
            if reads.len() == ACCESSES_MAX {
                return Err(A::Error::custom(format_args!(
                    "a layer has at most {ACCESSES_MAX} reads"
                )));
            }
            micros = micros.saturating_add(step);
            reads.push(Access { micros, chunk });
        }
        Ok(Reads(reads))
    }
}

pub(super) fn read(bytes: &[u8]) -> Result<Profile, ProfileError> {
    let versions: Versions = serde_json::from_slice(bytes).map_err(|error| wrong(&error))?;
    if versions.readable_since.unwrap_or(versions.version) > VERSION {
        return Err(ProfileError::Version(versions.version));
    }
    let file: File = serde_json::from_slice(bytes).map_err(|error| wrong(&error))?;
    let layers = file.layers.into_iter().map(|layer| {
        let digest = |text: &str| text.parse().map_err(|error| wrong(&error));
        Ok(LayerReads {
            index: digest(&layer.index)?,
            blob: digest(&layer.blob)?,
            diff_id: digest(&layer.diff_id)?,
            reads: layer.reads.0,
        })
    });
    Ok(Profile {
        image: file.image,
        layers: layers.collect::<Result<_, _>>()?,
    })
}

pub(super) fn write(profile: &Profile) -> Vec<u8> {
    let layers = profile.layers.iter().map(|layer| {
        let mut reads = layer.reads.clone();
        reads.sort_by_key(|read| read.micros);
        reads.truncate(ACCESSES_MAX);
        Layer {
            index: layer.index.to_string(),
            blob: layer.blob.to_string(),
            diff_id: layer.diff_id.to_string(),
            reads: Reads(reads),
        }
    });
    let file = File {
        version: VERSION,
        readable_since: None,
        image: profile.image.clone(),
        layers: layers.collect(),
    };
    let mut bytes = serde_json::to_vec(&file).expect("strings and numbers always serialise");
    bytes.push(b'\n');
    bytes
}

fn wrong(error: &impl fmt::Display) -> ProfileError {
    let said = error.to_string();
    let plain = |letter: char| if letter.is_control() { ' ' } else { letter };
    ProfileError::Form(said.chars().take(COMPLAINT_MAX).map(plain).collect())
}
