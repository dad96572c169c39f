//! Reading a manifest or an index, unless other programs would read something else in it.
//!
//! Go finds the fields of a document whatever their case, and takes the last of those that fit;
//! others take the first, or fields of the exact name alone. A document that uses the difference
//! shows one image to whoever checks it and another to whoever runs it.

use serde::Deserialize;
use serde::de::Error as _;
use serde_json::{Error, Value};

use super::{Descriptor, ImageIndex, Manifest, Other};

/// Fields of documents that mean something to us or to containerd.
const DOCUMENT_FIELDS: [&str; 9] = [
    "schemaVersion",
    "mediaType",
    "artifactType",
    "config",
    "layers",
    "manifests",
    "fsLayers",
    "subject",
    "annotations",
];

/// The same of descriptors.
const DESCRIPTOR_FIELDS: [&str; 8] = [
    "mediaType",
    "digest",
    "size",
    "urls",
    "annotations",
    "data",
    "artifactType",
    "platform",
];

impl Manifest {
    /// Reads a manifest. Its size is bounded by who read the bytes, its depth by the JSON reader
    /// (127 levels); a field that is named twice, in whatever case, is an error.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let manifest: Self = read(bytes)?;
        of_one_kind(&manifest.other, &["manifests", "fsLayers"])?;
        one_way_to_read(&manifest.other, &DOCUMENT_FIELDS)?;
        let descriptors = manifest.layers.iter().chain([&manifest.config]);
        descriptors.chain(&manifest.subject).try_for_each(check)?;
        Ok(manifest)
    }
}

impl ImageIndex {
    /// Reads an index, as [`Manifest::parse`] reads a manifest.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let index: Self = read(bytes)?;
        of_one_kind(&index.other, &["config", "layers", "fsLayers"])?;
        one_way_to_read(&index.other, &DOCUMENT_FIELDS)?;
        let descriptors = index.manifests.iter();
        descriptors.chain(&index.subject).try_for_each(check)?;
        Ok(index)
    }
}

/// From the bytes, not by way of a [`Value`]: that would have forgotten what was there twice.
fn read<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes)
}

fn check(descriptor: &Descriptor) -> Result<(), Error> {
    one_way_to_read(&descriptor.other, &DESCRIPTOR_FIELDS)
}

/// A document that is two things could be one of them to us and the other to a runtime.
fn of_one_kind(other: &Other, foreign: &[&str]) -> Result<(), Error> {
    let is_there = |name: &&&str| other.get(**name).is_some_and(|field| *field != Value::Null);
    match foreign.iter().find(is_there) {
        None => Ok(()),
        Some(_) => Err(Error::custom(
            "it is an image and an index at the same time",
        )),
    }
}

fn one_way_to_read(other: &Other, fields: &[&str]) -> Result<(), Error> {
    for name in other.keys() {
        let folded = folded(name);
        let same = |field: &&&str| folded == field.to_ascii_lowercase() && name != **field;
        if let Some(field) = fields.iter().find(same) {
            let text = format!("its field {name:?} would be read as {field:?} by other programs");
            return Err(Error::custom(text));
        }
    }
    Ok(())
}

/// A field's name as Go compares it: in any case, the two letters that Unicode folds to ASCII
/// among them.
fn folded(name: &str) -> String {
    let plain = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    };
    name.chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

    fn refusal(text: &str) -> String {
        let error = Manifest::parse(text.as_bytes()).map(drop).unwrap_err();
        error.to_string()
    }

    /// Promise: a document that two programs would read in two ways is refused by both our parsers.
    #[test]
    fn documents_that_can_be_read_in_two_ways_are_refused() {
        let one = format!(r#"{{"mediaType":"x","digest":"{DIGEST}","size":2}}"#);
        let two =
            format!(r#"{{"mediaType":"x","digest":"{DIGEST}","Digest":"{DIGEST}","size":2}}"#);
        let with = |rest: &str| format!(r#"{{"schemaVersion":2,"config":{one},{rest}}}"#);
        for (text, why) in [
            (with(r#""layers":[],"Layers":[]"#), "other programs"),
            (with(r#""layers":[],"layer\u017f":[]"#), "other programs"),
            (with(r#""layers":[],"layers":[]"#), "duplicate field"),
            (with(&format!(r#""layers":[{two}]"#)), "other programs"),
            (with(r#""manifests":[]"#), "at the same time"),
            (with(r#""fsLayers":[]"#), "at the same time"),
            (with(r#""MANIFESTS":[]"#), "other programs"),
        ] {
            assert!(refusal(&text).contains(why), "{text}: {}", refusal(&text));
        }
        assert!(Manifest::parse(with(r#""layers":[],"manifests":null,"x":[]"#).as_bytes()).is_ok());
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{two}]}}"#);
        assert!(ImageIndex::parse(index.as_bytes()).is_err());
        let index = format!(r#"{{"schemaVersion":2,"manifests":[],"config":{one}}}"#);
        assert!(ImageIndex::parse(index.as_bytes()).is_err());
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{one}],"layers":null}}"#);
        assert!(ImageIndex::parse(index.as_bytes()).is_ok());
    }

    /// Promise: nesting costs neither the stack nor the memory.
    #[test]
    fn deep_documents_are_refused() {
        let deep = format!(r#"{{"x":{}"#, "[".repeat(100_000));
        assert!(
            refusal(&deep).contains("recursion limit"),
            "{}",
            refusal(&deep)
        );
    }
}
