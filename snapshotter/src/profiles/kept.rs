//! The profiles of a node: one file for each image, `<root>/profiles/<64 hex digits>.json`.
//!
//! Nothing depends on them. A file that cannot be used goes, with a line in the log; when there are too
//! many, those go that were not used for the longest time.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;

use larder_fuse::{Disk as _, StdDisk, create_private};
use larder_proto::digest::Digest;
use larder_proto::profile::{PROFILE_BYTES_MAX, Profile};

/// Profiles kept: a node has some tens of images at a time, and those of earlier versions help little.
const FILES_MAX: usize = 256;

/// Bytes of all of them. A start reads a thousand chunks, which take 15 kB; a node whose profiles are all
/// huge keeps the newest of them.
const BYTES_MAX: u64 = 32 << 20;

/// What the file of a profile is called, after the image's key.
const SUFFIX: &str = "json";

/// What is known of a profile without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Names the image, by its layers.
    pub key: Digest,
    /// A name of the image; empty where nobody told one.
    pub image: String,
    /// The indexes of its layers, the lowest first.
    pub layers: Vec<Digest>,
    /// The digests of their blobs.
    pub blobs: Vec<Digest>,
    /// How many chunks it has.
    pub reads: usize,
    /// Length of its file.
    pub bytes: u64,
    /// When it was last used or written.
    pub used: SystemTime,
}

impl Kept {
    fn of(profile: &Profile, bytes: u64, used: SystemTime) -> Self {
        let layers = &profile.layers;
        Self {
            key: profile.key(),
            image: profile.image.clone(),
            layers: layers.iter().map(|layer| layer.index).collect(),
            blobs: layers.iter().map(|layer| layer.blob).collect(),
            reads: profile.reads(),
            bytes,
            used,
        }
    }
}

type Entries = BTreeMap<Digest, Kept>;

/// The kept profiles. Every call may wait for the disk; the first one reads all files.
#[derive(Debug)]
pub(super) struct KeptProfiles {
    directory: PathBuf,
    entries: OnceLock<Mutex<Entries>>,
}

impl KeptProfiles {
    /// Those in `directory`, which need not exist.
    pub(super) fn at(directory: PathBuf) -> Self {
        let entries = OnceLock::new();
        Self { directory, entries }
    }

    /// Where they are.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// All of them, the one used last first.
    pub(super) fn list(&self) -> Vec<Kept> {
        let mut all: Vec<_> = self.lock().values().cloned().collect();
        all.sort_by_key(|kept| std::cmp::Reverse(kept.used));
        all
    }

    /// Whether there is a profile of an image.
    pub(super) fn has(&self, key: &Digest) -> bool {
        self.lock().contains_key(key)
    }

    /// The profile of an image, which counts as used.
    pub(super) fn get(&self, key: &Digest) -> Option<Profile> {
        let mut entries = self.lock();
        let kept = entries.get_mut(key)?;
        let path = self.path(key);
        match load(&path) {
            Ok((profile, _)) if profile.key() == *key => {
                kept.used = SystemTime::now();
                // The order survives a restart; without it, that of the writing does.
                drop(File::open(&path).and_then(|file| file.set_modified(kept.used)));
                Some(profile)
            }
            Ok(_) => self.discard(&mut entries, key, "it is of another image"),
            Err(why) => self.discard(&mut entries, key, &why),
        }
    }

    /// A profile that has a layer: that of `image`, or else the one used last.
    pub(super) fn with_layer(&self, index: &Digest, image: &str) -> Option<Profile> {
        let all = self.list();
        let mut having = all.iter().filter(|kept| kept.layers.contains(index));
        let first = having.clone().next()?;
        let named = having.find(|kept| !image.is_empty() && kept.image == image);
        self.get(&named.unwrap_or(first).key)
    }

    /// Keeps a profile instead of what there was for its image.
    pub(super) fn put(&self, profile: &Profile) -> io::Result<Kept> {
        let bytes = profile.encode();
        let kept = Kept::of(profile, bytes.len() as u64, SystemTime::now());
        let mut entries = self.lock();
        create_private(&self.directory)?;
        StdDisk.replace_durably(&self.path(&kept.key), &bytes)?;
        entries.insert(kept.key, kept.clone());
        self.trim(&mut entries);
        Ok(kept)
    }

    /// Forgets a profile; whether there was one.
    pub(super) fn remove(&self, key: &Digest) -> io::Result<bool> {
        let mut entries = self.lock();
        if !entries.contains_key(key) {
            return Ok(false);
        }
        match fs::remove_file(self.path(key)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        entries.remove(key);
        Ok(true)
    }

    /// The image of that name or key, or with layers of just these blobs.
    pub(super) fn find(&self, name: &str, blobs: &[Digest]) -> Option<Digest> {
        let key: Option<Digest> = name.parse().ok();
        let all = self.list();
        let is_meant = |kept: &&Kept| {
            let is_named = !name.is_empty() && kept.image == name;
            is_named || key == Some(kept.key)
        };
        let named = all.iter().find(is_meant);
        let has_them = |kept: &&Kept| !blobs.is_empty() && kept.blobs == blobs;
        let found = named.or_else(|| all.iter().find(has_them));
        found.map(|kept| kept.key)
    }

    fn path(&self, key: &Digest) -> PathBuf {
        self.directory.join(key.hex()).with_extension(SUFFIX)
    }

    fn discard<T>(&self, entries: &mut Entries, key: &Digest, why: &str) -> Option<T> {
        entries.remove(key);
        discard(&self.path(key), why);
        None
    }

    /// Takes the oldest away until the rest is few enough.
    fn trim(&self, entries: &mut Entries) {
        let bytes = |entries: &Entries| entries.values().map(|kept| kept.bytes).sum::<u64>();
        while entries.len() > FILES_MAX || (bytes(entries) > BYTES_MAX && entries.len() > 1) {
            let oldest = entries.values().min_by_key(|kept| kept.used);
            let Some(key) = oldest.map(|kept| kept.key) else {
                return;
            };
            entries.remove(&key);
            if let Err(error) = fs::remove_file(self.path(&key)) {
                tracing::warn!(path = %self.path(&key).display(), %error,
                    "a profile that was not used for long cannot be removed");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        let entries = self.entries.get_or_init(|| Mutex::new(self.read()));
        entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What former runs left.
    fn read(&self) -> Entries {
        let mut entries = Entries::new();
        let files = match fs::read_dir(&self.directory) {
            Ok(files) => files,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(path = %self.directory.display(), %error, "cannot read the profiles");
                }
                return entries;
            }
        };
        for file in files.filter_map(Result::ok) {
            let path = file.path();
            if path.extension().is_none_or(|suffix| suffix != SUFFIX) {
                // Half written by a daemon that was killed.
                drop(fs::remove_file(&path));
                continue;
            }
            match load(&path) {
                Ok((profile, kept)) if self.path(&kept.key) == path => {
                    drop(profile);
                    entries.insert(kept.key, kept);
                }
                Ok(_) => discard(&path, "it is of another image"),
                Err(why) => discard(&path, &why),
            }
        }
        self.trim(&mut entries);
        entries
    }
}

/// A profile nobody can use is no reason to stop.
fn discard(path: &Path, why: &str) {
    tracing::warn!(path = %path.display(), why, "a profile cannot be used and is removed; the next start is recorded anew");
    drop(fs::remove_file(path));
}

fn load(path: &Path) -> Result<(Profile, Kept), String> {
    let said = |error: io::Error| error.to_string();
    let known = fs::symlink_metadata(path).map_err(said)?;
    if !known.is_file() || known.len() > PROFILE_BYTES_MAX as u64 {
        return Err(format!(
            "it is no file of at most {PROFILE_BYTES_MAX} bytes"
        ));
    }
    let bytes = larder_registry::bounded::read(path, PROFILE_BYTES_MAX as u64).map_err(said)?;
    let profile = Profile::decode(&bytes).map_err(|error| error.to_string())?;
    let used = known.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    let kept = Kept::of(&profile, bytes.len() as u64, used);
    Ok((profile, kept))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use larder_proto::access::Access;
    use larder_proto::profile::LayerReads;

    use super::*;

    fn profile(image: &str, layers: &[&str]) -> Profile {
        let layers = layers.iter().map(|name| LayerReads {
            index: Digest::of(name.as_bytes()),
            blob: Digest::of(format!("blob of {name}").as_bytes()),
            diff_id: Digest::of(b"tar"),
            reads: vec![Access {
                micros: 1,
                chunk: 2,
            }],
        });
        Profile {
            image: image.into(),
            layers: layers.collect(),
        }
    }

    fn at(scratch: &tempfile::TempDir) -> KeptProfiles {
        KeptProfiles::at(scratch.path().join("profiles"))
    }

    /// Promise: what was learnt is there after a restart, for root alone, found by the image's name, its key
    /// and its layers.
    #[test]
    fn a_profile_is_kept_across_restarts() {
        let scratch = tempfile::tempdir().unwrap();
        let one = profile("r.test/app:1", &["a", "b"]);
        let kept = at(&scratch).put(&one).unwrap();
        let again = at(&scratch);
        assert_eq!(again.get(&one.key()), Some(one.clone()));
        let listed = again.list();
        assert_eq!((listed[0].reads, listed[0].bytes), (2, kept.bytes));
        let key = Some(one.key());
        assert_eq!(again.find("r.test/app:1", &[]), key);
        assert_eq!(again.find(&one.key().to_string(), &[]), key);
        assert_eq!(again.find("another", &kept.blobs), key);
        assert_eq!(again.find("", &[]), None);
        for path in [again.directory.clone(), again.path(&one.key())] {
            let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
            assert_eq!(mode, if path.is_dir() { 0o700 } else { 0o600 });
        }
        assert!(again.remove(&one.key()).unwrap());
        assert!(!again.remove(&one.key()).unwrap());
        assert_eq!(at(&scratch).list(), []);
    }

    /// Promise: another image's profile serves for a layer that it shares; that of the image itself goes
    /// before.
    #[test]
    fn a_shared_layer_is_found_in_the_profile_of_its_image_first() {
        let scratch = tempfile::tempdir().unwrap();
        let kept = at(&scratch);
        kept.put(&profile("r.test/own:1", &["base", "own"]))
            .unwrap();
        kept.put(&profile("r.test/other:1", &["base", "other"]))
            .unwrap();
        let base = Digest::of(b"base");
        let found = |image| kept.with_layer(&base, image).map(|found| found.image);
        assert_eq!(found("r.test/own:1").as_deref(), Some("r.test/own:1"));
        assert_eq!(found("r.test/own:1").as_deref(), Some("r.test/own:1"));
        assert!(found("r.test/new:1").is_some());
        assert_eq!(kept.with_layer(&Digest::of(b"none"), ""), None);
    }

    /// Promise: there are at most so many profiles, and those go that nobody used for the longest time.
    #[test]
    fn the_number_of_profiles_is_bounded() {
        let scratch = tempfile::tempdir().unwrap();
        let kept = at(&scratch);
        let first = profile("first", &["first"]);
        kept.put(&first).unwrap();
        for number in 0..FILES_MAX {
            if number == FILES_MAX - 1 {
                assert!(kept.get(&first.key()).is_some(), "it is used now");
            }
            let name = number.to_string();
            kept.put(&profile(&name, &[&name])).unwrap();
        }
        assert!(kept.get(&first.key()).is_some());
        assert_eq!(kept.get(&profile("0", &["0"]).key()), None);
        let files = fs::read_dir(&kept.directory).unwrap().count();
        assert_eq!((files, kept.list().len()), (FILES_MAX, FILES_MAX));
    }

    /// Promise: a damaged, foreign or huge file in the place of a profile is no reason not to start or to
    /// fail; it goes.
    #[test]
    fn a_file_that_is_no_profile_goes() {
        let scratch = tempfile::tempdir().unwrap();
        let kept = at(&scratch);
        let (one, other) = (profile("one", &["one"]), profile("other", &["other"]));
        kept.put(&one).unwrap();
        let path = kept.path(&one.key());
        let sound = fs::read(&path).unwrap();
        for bad in [
            b"".to_vec(),
            sound[..40].to_vec(),
            other.encode(),
            vec![b' '; 5 << 20],
        ] {
            fs::write(&path, &bad).unwrap();
            fs::write(path.with_extension("new"), &bad).unwrap();
            let again = at(&scratch);
            assert_eq!(again.list(), [], "{}", bad.len());
            assert!(!path.exists() && !path.with_extension("new").exists());
            again.put(&one).unwrap();
            fs::write(&path, &bad).unwrap();
            assert_eq!(again.get(&one.key()), None);
            assert!(!path.exists());
        }
    }
}
