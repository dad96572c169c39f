//! The files of an installation: the configuration, its backup, and a record for the way back.

use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use larder_proto::digest::Digest;
use larder_registry::bounded;
use serde::{Deserialize, Serialize};
use toml::Table;

use super::undo::{Owner, undo};
use super::{InstallError, Wish, edit, imported};

/// Longest configuration that is read, bytes: `containerd config dump` gives about 20 KiB.
pub(super) const CONFIG_BYTES_MAX: u64 = 4 << 20;

/// First line of a fragment of ours; one without it is left alone.
const FRAGMENT: &str = "# Written by `larder-snapshotter install`; `uninstall` removes it.\n";

/// What is to be written, or was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The file.
    pub file: PathBuf,
    /// Its text before, if it was there.
    pub before: Option<String>,
    /// Its text afterwards; without it, it goes.
    pub after: Option<String>,
    /// What the operator should know.
    pub notes: Vec<String>,
    /// The file as it was before the first installation, if there will be a copy.
    pub backup: Option<PathBuf>,
}

impl Change {
    /// Whether there is nothing to do.
    pub fn is_none(&self) -> bool {
        self.before == self.after
    }
}

/// Where everything is.
#[derive(Debug, Clone)]
pub struct Files {
    config: PathBuf,
    /// Write a fragment where containerd reads one.
    fragments: bool,
}

/// What is known of an installation.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    /// Of this record's form.
    format: u32,
    /// What the snapshotter is called.
    name: String,
    /// Whether the configuration was there before.
    existed: bool,
    /// Digest of what was written. Without, it was installed over changes of others, and the backup
    /// is not what it should become again.
    written: Option<String>,
}

const RECORD_FORMAT: u32 = 1;

impl Files {
    /// The files around containerd's configuration `config`. With `fragments`, ours may be a file of
    /// its own in a directory that is imported.
    pub fn new(config: &Path, fragments: bool) -> Self {
        // A link stays one; what it leads to is edited.
        let config = fs::canonicalize(config).unwrap_or_else(|_| config.to_owned());
        Self { config, fragments }
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.config.clone().into_os_string();
        name.push(suffix);
        name.into()
    }

    fn backup(&self) -> PathBuf {
        self.beside(".before-larder")
    }

    fn record(&self) -> PathBuf {
        self.beside(".larder.json")
    }

    fn known(&self) -> Result<Option<Record>, InstallError> {
        let path = self.record();
        let Some(text) = read(&path)? else {
            return Ok(None);
        };
        let refused = |why: String| InstallError::Refused {
            path: path.clone(),
            why,
        };
        let record: Record = serde_json::from_str(&text)
            .map_err(|error| refused(format!("it is not a record of an installation: {error}")))?;
        if record.format == RECORD_FORMAT {
            Ok(Some(record))
        } else {
            Err(refused("another version of this program wrote it".into()))
        }
    }

    /// Where a fragment of ours would be read, if the configuration imports a directory.
    fn fragment(&self, text: &str, name: &str) -> Option<PathBuf> {
        let table: Table = text.parse().ok()?;
        let imports = table.get("imports")?.as_array()?;
        let folder = self.config.parent()?;
        let mut directories = imports
            .iter()
            .filter_map(|one| one.as_str()?.strip_suffix("/*.toml"));
        let directory = directories.next()?;
        (!directory.contains('*')).then(|| folder.join(directory).join(format!("{name}.toml")))
    }

    /// Whether a fragment would take nothing away: containerd takes the table of a plugin whole from
    /// the file that comes last.
    fn fragment_fits(&self, fragment: &Path, wish: &Wish) -> bool {
        let Ok(all) = imported::read_without(&self.config, Some(fragment)) else {
            return false;
        };
        let version = all.get("version").and_then(toml::Value::as_integer);
        let Ok(ours) = edit(&fragment_start(version), wish) else {
            return false;
        };
        let Ok(ours) = ours.text.parse::<Table>() else {
            return false;
        };
        ["plugins", "proxy_plugins"].iter().all(|kind| {
            let names = |table: &Table| table.get(*kind).and_then(toml::Value::as_table).cloned();
            let there = names(&all).unwrap_or_default();
            let wanted = names(&ours).unwrap_or_default();
            wanted.keys().all(|name| !there.contains_key(name))
        })
    }
}

fn fragment_start(version: Option<i64>) -> String {
    format!("{FRAGMENT}version = {}\n", version.unwrap_or(2))
}

/// What installing would change.
pub fn install(files: &Files, wish: &Wish) -> Result<Change, InstallError> {
    let config = &files.config;
    let before = read(config)?;
    let text = before.clone().unwrap_or_default();
    let fragment = files
        .fragment(&text, &wish.name)
        .filter(|_| files.fragments);
    if let Some(fragment) = fragment.filter(|fragment| files.fragment_fits(fragment, wish)) {
        let there = read(&fragment)?;
        if there
            .as_ref()
            .is_some_and(|text| !text.starts_with(FRAGMENT))
        {
            let why = "`install` did not write it: remove it, or use --in-place".into();
            return Err(InstallError::Refused {
                path: fragment,
                why,
            });
        }
        let version = text.parse::<Table>().ok();
        let version = version.and_then(|table| table.get("version")?.as_integer());
        let edited = edited(&fragment, &fragment_start(version), wish)?;
        return Ok(Change {
            file: fragment,
            before: there,
            after: Some(edited.text),
            notes: edited.notes,
            backup: None,
        });
    }
    let edited = edited(config, &text, wish)?;
    Ok(Change {
        file: config.clone(),
        backup: before.is_some().then(|| files.backup()),
        before,
        after: Some(edited.text),
        notes: edited.notes,
    })
}

fn edited(path: &Path, text: &str, wish: &Wish) -> Result<super::Edited, InstallError> {
    if let Err(error) = text.parse::<toml_edit::DocumentMut>() {
        return Err(InstallError::Syntax {
            path: path.to_owned(),
            what: error.to_string(),
        });
    }
    edit(text, wish).map_err(|why| InstallError::Refused {
        path: path.to_owned(),
        why,
    })
}

/// What uninstalling would change. `address` is our socket's, if that is known: a plugin of the same name that
/// somebody else wrote stays.
pub fn uninstall(
    files: &Files,
    name: &str,
    address: Option<&Path>,
) -> Result<Change, InstallError> {
    let owner = Owner::At(address.and_then(Path::to_str));
    let config = &files.config;
    let before = read(config)?;
    let text = before.clone().unwrap_or_default();
    if let Some(fragment) = files.fragment(&text, name)
        && let Some(there) = read(&fragment)?
        && there.starts_with(FRAGMENT)
    {
        return Ok(Change {
            file: fragment,
            before: Some(there),
            after: None,
            notes: Vec::new(),
            backup: None,
        });
    }
    let unchanged = Change {
        file: config.clone(),
        after: before.clone(),
        before: before.clone(),
        notes: Vec::new(),
        backup: None,
    };
    let Some(record) = files.known()?.filter(|record| record.name == name) else {
        // Written by hand, perhaps: what stood there before is not known.
        let after = match before {
            Some(text) if mentions(&text, name) => Some(undone(config, &text, "", name, owner)?),
            other => other,
        };
        return Ok(Change { after, ..unchanged });
    };
    let first = read(&files.backup())?.filter(|_| record.existed);
    let after = if record.written == Some(Digest::of(text.as_bytes()).to_string()) {
        first
    } else {
        // Without our address, that it was installed has to do.
        let owner = address.map_or(Owner::Known, |_| owner);
        let first = first.unwrap_or_default();
        Some(undone(config, &text, &first, name, owner)?)
    };
    Ok(Change { after, ..unchanged })
}

/// Whether a configuration has the plugin `name`.
fn mentions(text: &str, name: &str) -> bool {
    let table: Option<Table> = text.parse().ok();
    let plugins = table.and_then(|mut table| table.remove("proxy_plugins"));
    plugins.is_some_and(|plugins| plugins.get(name).is_some())
}

fn undone(
    path: &Path,
    text: &str,
    before: &str,
    name: &str,
    owner: Owner<'_>,
) -> Result<String, InstallError> {
    undo(text, before, name, owner).map_err(|why| InstallError::Refused {
        path: path.to_owned(),
        why,
    })
}

impl Files {
    /// Writes what [`install`] found, and what the way back needs.
    pub fn write_installed(&self, change: &Change, name: &str) -> Result<(), InstallError> {
        let Some(after) = &change.after else {
            return Ok(());
        };
        if change.file == self.config {
            let first = self.known()?;
            let untouched = |record: &Record| {
                let before = change.before.clone().unwrap_or_default();
                record.written == Some(Digest::of(before.as_bytes()).to_string())
            };
            // The backup is of before the first installation. Over changes of others it is not what
            // the file has to become again.
            let clean = first.as_ref().is_none_or(untouched);
            if let (None, Some(before)) = (&first, &change.before) {
                write(&self.backup(), before, Some(&self.config))?;
            }
            let record = Record {
                format: RECORD_FORMAT,
                name: name.to_owned(),
                existed: first.map_or(change.before.is_some(), |record| record.existed),
                written: clean.then(|| Digest::of(after.as_bytes()).to_string()),
            };
            let record = serde_json::to_string_pretty(&record).unwrap_or_default() + "\n";
            write(&self.record(), &record, None)?;
        }
        write(&change.file, after, Some(&change.file))
    }

    /// Writes what [`uninstall`] found, and forgets the rest.
    pub fn write_uninstalled(&self, change: &Change) -> Result<(), InstallError> {
        match &change.after {
            Some(after) => write(&change.file, after, Some(&change.file))?,
            None => remove(&change.file)?,
        }
        if change.file == self.config {
            remove(&self.backup())?;
            remove(&self.record())?;
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Option<String>, InstallError> {
    match bounded::read_text(path, CONFIG_BYTES_MAX) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(InstallError::io("read", path)(error)),
    }
}

/// Replaces a file as a whole, with mode and owner of `like`, or for root alone.
fn write(path: &Path, text: &str, like: Option<&Path>) -> Result<(), InstallError> {
    let failed = || InstallError::io("write", path);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed())?;
    }
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".larder-new");
    let fresh = PathBuf::from(fresh);
    drop(fs::remove_file(&fresh));
    let mut file = File::create_new(&fresh).map_err(failed())?;
    let like = like.and_then(|like| fs::metadata(like).ok());
    let mode = like.as_ref().map_or(0o600, |like| like.mode() & 0o7777);
    let done = fs::set_permissions(&fresh, Permissions::from_mode(mode))
        .and_then(|()| match like {
            Some(like) => chown(&fresh, Some(like.uid()), Some(like.gid())),
            None => Ok(()),
        })
        .and_then(|()| file.write_all(text.as_bytes()))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&fresh, path));
    if done.is_err() {
        drop(fs::remove_file(&fresh));
    }
    done.map_err(failed())
}

fn remove(path: &Path) -> Result<(), InstallError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(InstallError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}
