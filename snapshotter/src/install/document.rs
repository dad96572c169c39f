//! containerd's configuration as a document: where its tables are in each version.

use toml_edit::{DocumentMut, Item, Table, TableLike};

/// CRI's table up to version 2, which holds both of those of version 3.
const CRI: &str = "io.containerd.grpc.v1.cri";
const CRI_IMAGES: &str = "io.containerd.cri.v1.images";
/// The transfer service's.
pub(super) const TRANSFER: &str = "io.containerd.transfer.v1.local";

/// What a file may say without a version and mean the same in version 2.
const WITHOUT_VERSION: [&str; 14] = [
    "cgroup",
    "debug",
    "disabled_plugins",
    "grpc",
    "imports",
    "metrics",
    "oom_score",
    "required_plugins",
    "root",
    "state",
    "stream_processors",
    "temp",
    "timeouts",
    "ttrpc",
];

/// Versions of the file that are understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    Two,
    Three,
}

impl Version {
    /// The version of `document`; `None` if it says none.
    pub(super) fn of(document: &DocumentMut) -> Result<Option<Self>, String> {
        let Some(found) = document.get("version") else {
            return Ok(None);
        };
        match found.as_integer() {
            Some(2) if plugin(document, CRI_IMAGES).is_some() => Err(format!(
                "it says version = 2 and has [plugins.\"{CRI_IMAGES}\"], which belongs to version \
                 3: correct one of them"
            )),
            Some(2) => Ok(Some(Self::Two)),
            Some(3) => Ok(Some(Self::Three)),
            Some(1) => Err(
                "it is of version 1, whose tables have other names: write it anew with `containerd \
                 config migrate`, or as version = 2"
                    .into(),
            ),
            Some(other) => Err(format!(
                "it is of version {other}, and this program knows 2 and 3, which containerd also \
                 reads"
            )),
            None => Err("its version is not a number".into()),
        }
    }

    /// The keys that lead to CRI's settings of images.
    pub(super) const fn cri_images(self) -> &'static [&'static str] {
        match self {
            Self::Two => &["plugins", CRI, "containerd"],
            Self::Three => &["plugins", CRI_IMAGES],
        }
    }

    /// The keys that lead to CRI's settings of registries.
    pub(super) const fn cri_registry(self) -> &'static [&'static str] {
        match self {
            Self::Two => &["plugins", CRI, "registry"],
            Self::Three => &["plugins", CRI_IMAGES, "registry"],
        }
    }

    /// The name under which CRI can be switched off.
    pub(super) const fn cri(self) -> &'static str {
        match self {
            Self::Two => CRI,
            Self::Three => CRI_IMAGES,
        }
    }
}

/// The same configuration with version 2, if that changes nothing else it says.
pub(super) fn with_version(text: &str, document: &DocumentMut) -> Result<DocumentMut, String> {
    let mut keys = document.iter().map(|(key, _)| key);
    if let Some(key) = keys.find(|key| !WITHOUT_VERSION.contains(key)) {
        return Err(format!(
            "it has no version, so containerd takes it for version 1, where [{key}] has other \
             names: write it anew with `containerd config migrate`, or add version = 2 and adapt it"
        ));
    }
    // Before the first thing that is said, behind the comments at the top.
    let is_comment = |line: &&str| line.trim().is_empty() || line.trim_start().starts_with('#');
    let lines = text.split_inclusive('\n').take_while(is_comment);
    let (above, below) = text.split_at(lines.map(str::len).sum());
    let end = if above.is_empty() || above.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    let text = format!("{above}{end}version = 2\n{below}");
    let mut document: DocumentMut = text.parse().map_err(|error| format!("{error}"))?;
    for key in ["disabled_plugins", "required_plugins"] {
        rename_plugins(&mut document, key)?;
    }
    Ok(document)
}

/// Version 1 names plugins by their last part; `cri` is the one people disable.
fn rename_plugins(document: &mut DocumentMut, key: &str) -> Result<(), String> {
    let Some(listed) = document.get_mut(key) else {
        return Ok(());
    };
    let listed = listed
        .as_array_mut()
        .ok_or_else(|| format!("{key} is not a list"))?;
    for plugin in listed.iter_mut() {
        let decor = plugin.decor().clone();
        match plugin.as_str() {
            Some("cri") => {
                *plugin = CRI.into();
                *plugin.decor_mut() = decor;
            }
            Some(full) if full.starts_with("io.containerd.") => {}
            _ => {
                return Err(format!(
                    "it has no version, so containerd takes it for version 1, and {key} names {} \
                     by its short name: add version = 2 and the full name",
                    plugin.to_string().trim()
                ));
            }
        }
    }
    Ok(())
}

/// The table of a plugin.
pub(super) fn plugin<'a>(document: &'a DocumentMut, name: &str) -> Option<&'a dyn TableLike> {
    at(document, &["plugins", name])
}

/// The table that `keys` lead to.
pub(super) fn at<'a>(document: &'a DocumentMut, keys: &[&str]) -> Option<&'a dyn TableLike> {
    let mut table: &dyn TableLike = document.as_table();
    for key in keys {
        table = table.get(key)?.as_table_like()?;
    }
    Some(table)
}

/// The table that `keys` lead to, made where it is missing.
pub(super) fn make<'a>(
    document: &'a mut DocumentMut,
    keys: &[&str],
) -> Result<&'a mut dyn TableLike, String> {
    let mut table: &mut dyn TableLike = document.as_table_mut();
    for (depth, key) in keys.iter().enumerate() {
        if table.get(key).is_none_or(Item::is_none) {
            let mut made = Table::new();
            // Only the last one gets a header.
            made.set_implicit(depth + 1 < keys.len());
            table.insert(key, Item::Table(made));
        }
        table = table
            .get_mut(key)
            .and_then(Item::as_table_like_mut)
            .ok_or_else(|| format!("{} is not a table", keys[..=depth].join(".")))?;
    }
    Ok(table)
}

/// Takes `key` out of the table `keys` lead to, and tables that are empty then.
pub(super) fn remove(document: &mut DocumentMut, keys: &[&str], key: &str) {
    remove_from(document.as_table_mut(), keys, key);
}

fn remove_from(table: &mut dyn TableLike, keys: &[&str], key: &str) {
    let Some((first, rest)) = keys.split_first() else {
        table.remove(key);
        return;
    };
    let Some(inner) = table.get_mut(first).and_then(Item::as_table_like_mut) else {
        return;
    };
    remove_from(inner, rest, key);
    if inner.is_empty() {
        table.remove(first);
    }
}
