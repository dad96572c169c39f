//! The start lists that a profile has for an image.

use larder_proto::annotation::StartList;
use larder_proto::profile::{LayerReads, Profile};

use super::{Converted, Texts, index};
use crate::convert::ConvertError;

/// A profile, and what of it has been used.
pub(super) struct Recorded<'a> {
    profile: &'a Profile,
    /// Its layers that no manifest had so far.
    unused: Vec<&'a LayerReads>,
    /// Whether it had a list for any layer.
    is_used: bool,
}

impl<'a> Recorded<'a> {
    pub(super) fn new(profile: &'a Profile) -> Self {
        Self {
            profile,
            unused: profile.layers.iter().collect(),
            is_used: false,
        }
    }

    /// The lists for a manifest of these layers, `count` in all; `None` if it has none of any of them.
    pub(super) async fn texts(
        &mut self,
        layers: &[Converted<'_>],
        count: usize,
        notes: &mut Vec<String>,
    ) -> Option<Texts> {
        let mut texts = vec![None; count];
        for of in layers {
            let digest = of.layer.location.digest;
            self.unused.retain(|reads| reads.index != digest);
            let reads = self.profile.layer(&digest);
            let Some(reads) = reads.filter(|reads| !reads.reads.is_empty()) else {
                continue;
            };
            match list(reads, of).await {
                Ok(list) => texts[of.number] = Some(list.to_string()),
                Err(reason) => notes.push(format!(
                    "the profile's part for layer {} is left out: {reason}",
                    of.layer.digest
                )),
            }
        }
        let has_any = texts.iter().any(Option::is_some);
        self.is_used |= has_any;
        has_any.then_some(texts)
    }

    /// Says what was of no use, or that nothing was of any.
    pub(super) fn finish(self, notes: &mut Vec<String>) -> Result<(), ConvertError> {
        if !self.is_used {
            return Err(ConvertError::Profile(self.profile.image.clone()));
        }
        let note = |reads: &LayerReads| {
            let index = reads.index;
            format!("the profile's layer with index {index} is not in the image, and is left out")
        };
        notes.extend(self.unused.into_iter().map(note));
        Ok(())
    }
}

/// What the profile has of a layer, if that has all the chunks it names.
async fn list(reads: &LayerReads, of: &Converted<'_>) -> Result<StartList, String> {
    let chunks = index(&of.layer, &of.place).await?.chunk_count();
    let text = StartList::of(&reads.reads).to_string();
    StartList::of_layer(&text, chunks).map_err(|error| error.to_string())
}
