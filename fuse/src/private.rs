//! Directories that only their owner reaches, in places that nobody else can put something into.

use std::fs::{self, DirBuilder, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

/// Mode of a directory that is for its owner alone.
const PRIVATE: u32 = 0o700;

/// Who may write besides the owner: the group and everybody.
const OTHERS: u32 = 0o022;

/// Directories where everybody may write, but only take away what is their own, such as /tmp.
const STICKY: u32 = 0o1000;

/// Levels below a root directory that are looked through after it was open: `store/<index>/device`.
const LEVELS_MAX: usize = 3;

/// What stands below a root directory for containers to see: there, files of all owners and links are
/// as the images have them.
const OF_IMAGES: [&str; 2] = ["snapshots", "session"];

/// Creates `path` with mode 0700, or makes it so: what is in there is for root alone.
///
/// Refuses a directory of another user, a place that others can write to (they could put another
/// directory there), and a directory that was open to others and holds what is not ours: links, or
/// files of other users, that would be written through.
pub fn private_directory(path: &Path) -> io::Result<()> {
    create_private(path)?;
    check_place(path)?;
    let path = &path.canonicalize()?;
    let found = fs::symlink_metadata(path)?;
    if !is_ours(&found) {
        let (owner, us) = (found.uid(), geteuid().as_raw());
        return Err(refused(format!(
            "it belongs to user {owner}, not to {us} who runs this: use another directory, or chown it"
        )));
    }
    fs::set_permissions(path, Permissions::from_mode(PRIVATE))?;
    if found.mode() & OTHERS != 0 {
        check_content(path, LEVELS_MAX)?;
    }
    Ok(())
}

/// Creates `path` and what is missing above it, 0700 whatever the umask. One that is there stays as it is.
pub fn create_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(PRIVATE).create(path)
}

/// Fails if somebody else could put something else in the place of `path`, which need not exist: by a
/// directory on the way to it that others can write to, or a link of theirs.
pub fn check_place(path: &Path) -> io::Result<()> {
    let absolute = std::path::absolute(path)?;
    check_way(&absolute)?;
    // Links on the way lead over other directories.
    match absolute.canonicalize() {
        Ok(real) if real != absolute => check_way(&real),
        _ => Ok(()),
    }
}

fn check_way(path: &Path) -> io::Result<()> {
    for (level, step) in path.ancestors().enumerate() {
        let found = match fs::symlink_metadata(step) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let shown = step.display();
        if found.is_symlink() && !is_ours(&found) {
            let owner = found.uid();
            return Err(refused(format!(
                "{shown} is a link of user {owner}, who could let it lead anywhere: name the directory itself"
            )));
        }
        let open = found.is_dir() && found.mode() & OTHERS != 0 && found.mode() & STICKY == 0;
        // The directory itself is closed by whoever asks.
        if level > 0 && open && !(is_of_roots_group(&found) && found.mode() & 0o002 == 0) {
            return Err(refused(format!(
                "{shown} can be written to by others, who could put another directory there: \
                 chmod go-w {shown}, or use another place"
            )));
        }
    }
    Ok(())
}

/// Fails if below `directory` is a link, or something of another user.
fn check_content(directory: &Path, levels: usize) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let found = fs::symlink_metadata(&path)?;
        if found.is_symlink() || !is_ours(&found) || (found.is_file() && found.nlink() > 1) {
            return Err(planted(&path));
        }
        let of_images = path
            .file_name()
            .is_some_and(|name| OF_IMAGES.iter().any(|one| name == *one));
        if found.is_dir() && levels > 1 && !of_images {
            check_content(&path, levels - 1)?;
        }
    }
    Ok(())
}

fn planted(path: &Path) -> io::Error {
    let path: PathBuf = path.into();
    refused(format!(
        "it was open to other users, and {} is a link or of another user: remove it, or the whole directory",
        path.display()
    ))
}

fn is_ours(found: &Metadata) -> bool {
    found.uid() == 0 || found.uid() == geteuid().as_raw()
}

fn is_of_roots_group(found: &Metadata) -> bool {
    found.gid() == 0
}

fn refused(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{chown, symlink};

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    fn open(path: &Path, mode: u32) {
        fs::create_dir_all(path).unwrap();
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn refusal(path: &Path) -> String {
        private_directory(path).unwrap_err().to_string()
    }

    /// Promise: a root directory that others could write to is closed.
    #[test]
    fn an_open_directory_is_closed() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().join("root");
        for before in [0o777, 0o1777, 0o755, 0o770] {
            open(&root, before);
            private_directory(&root).unwrap();
            assert_eq!(mode(&root), 0o700, "{before:o}");
        }
        let fresh = scratch.path().join("a/b");
        private_directory(&fresh).unwrap();
        assert_eq!(
            (mode(&fresh), mode(fresh.parent().unwrap())),
            (0o700, 0o700)
        );
    }

    /// Promise: what others may have put into an open root directory is not written through.
    #[test]
    fn what_was_planted_in_an_open_directory_is_found() {
        for level in ["", "store/", "store/00/"] {
            let scratch = tempfile::tempdir().unwrap();
            let root = scratch.path().join("root");
            fs::create_dir_all(root.join(level)).unwrap();
            let place = root.join(level).join("device");
            symlink("/etc/shadow", &place).unwrap();
            open(&root, 0o777);
            assert!(refusal(&root).contains("device"), "{level}");
            fs::remove_file(&place).unwrap();
            fs::write(&place, "x").unwrap();
            chown(&place, Some(1000), None).unwrap();
            open(&root, 0o777);
            assert!(refusal(&root).contains("device"), "{level}");
            chown(&place, Some(0), None).unwrap();
            fs::hard_link(&place, scratch.path().join("elsewhere")).unwrap();
            open(&root, 0o777);
            assert!(refusal(&root).contains("device"), "{level}");
            fs::remove_file(scratch.path().join("elsewhere")).unwrap();
            open(&root, 0o777);
            private_directory(&root).unwrap();
        }
    }

    /// Promise: a root directory is root's, and in a place where nobody else can put another one.
    #[test]
    fn places_that_others_control_are_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let theirs = scratch.path().join("theirs");
        open(&theirs, 0o700);
        chown(&theirs, Some(1000), None).unwrap();
        assert!(refusal(&theirs).contains("user 1000"));

        let ours = scratch.path().join("ours");
        open(&ours, 0o700);
        let link = scratch.path().join("link");
        symlink(&ours, &link).unwrap();
        // An operator's link to a larger disk.
        private_directory(&link).unwrap();
        std::os::unix::fs::lchown(&link, Some(1000), None).unwrap();
        assert!(refusal(&link).contains("link of user 1000"));

        let outer = scratch.path().join("outer");
        open(&outer, 0o777);
        let inner = outer.join("root");
        open(&inner, 0o700);
        assert!(refusal(&inner).contains("can be written to by others"));
        let way = scratch.path().join("way");
        symlink(&inner, &way).unwrap();
        assert!(refusal(&way).contains("can be written to by others"));
        open(&outer, 0o1777);
        private_directory(&inner).unwrap();
        open(&outer, 0o775);
        private_directory(&inner).unwrap();
    }
}
