//! Which images the layers are of that this process mounted, for what is told of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use larder_fuse::{Observer, SlowRead};
use larder_proto::digest::Digest;

use crate::reporter::told;

/// The references of mounted images by the indexes of their layers. Tells slow reads by them.
#[derive(Debug, Default)]
pub struct ImageNames(Mutex<BTreeMap<Digest, BTreeSet<String>>>);

impl ImageNames {
    /// From here on, these are mounted: references with the indexes of their layers.
    pub(super) fn are<'a>(&self, mounted: impl Iterator<Item = (&'a str, &'a [Digest])>) {
        let mut names: BTreeMap<Digest, BTreeSet<String>> = BTreeMap::new();
        for (reference, indexes) in mounted {
            for index in indexes {
                names
                    .entry(*index)
                    .or_default()
                    .insert(reference.to_owned());
            }
        }
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = names;
    }

    /// The images that the layer with this index is of, in one line.
    fn of(&self, index: &Digest) -> String {
        let names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let named = names.get(index).into_iter().flatten();
        told(named.map(String::as_str))
    }
}

impl Observer for ImageNames {
    fn slow_read(&self, read: &SlowRead) {
        read.log(&self.of(&read.layer.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: a layer is told by all images that have it, and by none that is mounted no more.
    #[test]
    fn a_layer_is_told_by_the_images_that_have_it_now() {
        let names = ImageNames::default();
        let [base, top] = [b"base", b"top."].map(|text| Digest::of(text));
        let both = [base, top];
        names.are([("r/b:1", &both[..]), ("r/a:1", &both[..1])].into_iter());
        assert_eq!(names.of(&base), "r/a:1, r/b:1");
        assert_eq!(names.of(&top), "r/b:1");
        names.are([("r/a:1", &both[..1])].into_iter());
        assert_eq!(names.of(&base), "r/a:1");
        assert_eq!(names.of(&top), "");
    }
}
