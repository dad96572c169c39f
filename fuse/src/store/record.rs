//! `layer.json`: what names a stored layer, and the sums of its files, its own as the last.

use larder_proto::annotation::IndexLocation;
use larder_proto::digest::{Algorithm, Digest};
use serde::{Deserialize, Serialize};

/// Version of what this build writes of a layer. Fields are only ever added, each with a default that
/// says what its absence means; a build that does not know one drops it.
const VERSION: u32 = 1;

/// What that needs of its readers, if not all versions will do: without it, its own version.
const READABLE_SINCE: Option<u32> = None;

/// What stands before the sum of a record, and behind it. Whatever a later build adds, this comes last.
const SUM_BEFORE: &str = ",\n  \"sum\": \"";
const SUM_AFTER: &str = "\"\n}";

/// Most patched images one layer may have; a layer is rarely used on more than a few parents.
pub(crate) const PATCHES_MAX: usize = 256;

/// Whether the index tells the truth about the tar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Proof {
    /// Not known: not all chunks were there yet.
    Pending,
    /// diffID and tree were found right.
    Proven,
    /// The index lied, in the way told.
    Quarantined(String),
}

/// A metadata image of the layer that has the attributes of implied directories filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Patch {
    /// Names the patch: hex of the digest of its description.
    pub(crate) key: String,
    /// Its place in the session.
    pub(crate) slot: u32,
    /// BLAKE3 of the file `meta-<key>`, hex.
    pub(crate) sum: String,
}

/// Everything about a stored layer that its index does not say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) blob: Digest,
    pub(crate) location: IndexLocation,
    pub(crate) slot: u32,
    pub(crate) index_sum: String,
    pub(crate) meta_sum: String,
    pub(crate) proof: Proof,
    pub(crate) patches: Vec<Patch>,
}

#[derive(Serialize, Deserialize)]
struct Raw {
    version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    readable_since: Option<u32>,
    blob: String,
    location: String,
    slot: u32,
    index_sum: String,
    meta_sum: String,
    proof: Proof,
    patches: Vec<Patch>,
}

#[derive(Deserialize)]
struct Versions {
    version: u32,
    readable_since: Option<u32>,
}

impl Record {
    /// The slots the layer is served under.
    pub(crate) fn slots(&self) -> Vec<u32> {
        let patches = self.patches.iter().map(|patch| patch.slot);
        patches.chain([self.slot]).collect()
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let raw = Raw {
            version: VERSION,
            readable_since: READABLE_SINCE,
            blob: self.blob.to_string(),
            location: self.location.to_string(),
            slot: self.slot,
            index_sum: self.index_sum.clone(),
            meta_sum: self.meta_sum.clone(),
            proof: self.proof.clone(),
            patches: self.patches.clone(),
        };
        let text =
            serde_json::to_string_pretty(&raw).expect("strings and numbers always serialise");
        let body = text.trim_end_matches("\n}");
        format!("{body}{SUM_BEFORE}{}{SUM_AFTER}", sum(body.as_bytes())).into_bytes()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let told = |error: serde_json::Error| error.to_string();
        // First, since the rest may be anything in a later version.
        let Versions {
            version,
            readable_since,
        } = serde_json::from_slice(bytes).map_err(told)?;
        if readable_since.unwrap_or(version) > VERSION {
            return Err(format!(
                "a later build wrote it, in version {version}; this build reads {VERSION}"
            ));
        }
        let raw: Raw = serde_json::from_slice(bytes).map_err(told)?;
        if !is_as_written(bytes) {
            return Err("it has changed since it was written".into());
        }
        if raw.patches.len() > PATCHES_MAX {
            return Err(format!("it lists more than {PATCHES_MAX} patched images"));
        }
        let is_key = |key: &str| key.len() <= 64 && key.bytes().all(|b| b.is_ascii_hexdigit());
        if !raw.patches.iter().all(|patch| is_key(&patch.key)) {
            return Err("a patched image has no hexadecimal name".into());
        }
        Ok(Self {
            blob: raw.blob.parse().map_err(|error| format!("{error}"))?,
            location: raw.location.parse().map_err(|error| format!("{error}"))?,
            slot: raw.slot,
            index_sum: raw.index_sum,
            meta_sum: raw.meta_sum,
            proof: raw.proof,
            patches: raw.patches,
        })
    }
}

/// BLAKE3 of `bytes`, hex.
pub(super) fn sum(bytes: &[u8]) -> String {
    Digest::from_bytes(*Algorithm::Blake3.digest(bytes).as_bytes()).hex()
}

/// Whether the last field is the sum of what stands before it. Without one, it is of an earlier build.
fn is_as_written(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return false;
    };
    text.rsplit_once(SUM_BEFORE)
        .is_none_or(|(body, rest)| rest.strip_suffix(SUM_AFTER) == Some(&*sum(body.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            blob: Digest::of(b"blob"),
            location:
                "1:2:3:sha256:0000000000000000000000000000000000000000000000000000000000000000"
                    .parse()
                    .unwrap(),
            slot: 4,
            index_sum: "aa".into(),
            meta_sum: "bb".into(),
            proof: Proof::Quarantined("why".into()),
            patches: vec![Patch {
                key: "0a".into(),
                slot: 5,
                sum: "cc".into(),
            }],
        }
    }

    #[test]
    fn a_record_survives_its_file() {
        assert_eq!(Record::decode(&record().encode()), Ok(record()));
    }

    #[test]
    fn odd_records_are_refused() {
        let mut outside = record();
        outside.patches[0].key = "../../etc".into();
        for bad in [outside.encode(), b"{".to_vec(), Vec::new()] {
            assert!(Record::decode(&bad).is_err());
        }
    }

    /// Promise: no byte of a record can change without being noticed, or meaning the same; one of a build
    /// that wrote no sum is read.
    #[test]
    fn a_record_with_a_changed_byte_is_refused() {
        let written = record().encode();
        for at in 0..written.len() {
            for bit in 0..8 {
                let mut changed = written.clone();
                changed[at] ^= 1 << bit;
                if let Ok(read) = Record::decode(&changed) {
                    assert_eq!(read, record(), "byte {at}, bit {bit}");
                }
            }
        }
        let text = String::from_utf8(written).unwrap();
        let (body, _) = text.rsplit_once(SUM_BEFORE).unwrap();
        let before = format!("{body}\n}}");
        assert_eq!(Record::decode(before.as_bytes()), Ok(record()));
    }

    /// Promise: what a later build adds keeps nobody from going back to this one; what this one cannot
    /// understand is refused in a sentence.
    #[test]
    fn records_of_a_later_build_are_read_if_they_say_so() {
        let written = |as_version: &str| {
            let text = String::from_utf8(record().encode()).unwrap();
            let text = text.replace("\"version\": 1", as_version);
            let text = text.replace("\"slot\": 5", "\"slot\": 5, \"unheard of\": {}");
            let (body, _) = text.rsplit_once(SUM_BEFORE).unwrap();
            format!("{body}{SUM_BEFORE}{}{SUM_AFTER}", sum(body.as_bytes())).into_bytes()
        };
        for later in [
            "\"version\": 9, \"readable_since\": 1, \"new\": [1]",
            "\"version\": 1, \"new\": 2",
        ] {
            let read = Record::decode(&written(later));
            assert_eq!(read, Ok(record()), "{later}");
        }
        for needs in ["\"version\": 2", "\"version\": 9, \"readable_since\": 2"] {
            let refused = Record::decode(&written(needs)).unwrap_err();
            assert!(refused.contains("a later build wrote it"), "{refused}");
        }
        let needs = br#"{"version":2,"blob":["in another way"]}"#;
        let refused = Record::decode(needs).unwrap_err();
        assert!(refused.contains("a later build wrote it"), "{refused}");
    }
}
