//! The text of a configuration with our tables in it.

use toml::Table as Plain;
use toml_edit::{Array, ArrayOfTables, DocumentMut, InlineTable, Item, Table, TableLike, value};

use super::Wish;
use super::document::{TRANSFER, Version, at, make, with_version};

/// Where containerd and Larder look for mirrors and certificates of registries.
const HOSTS_DIR: &str = "/etc/containerd/certs.d";

/// A configuration that was edited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edited {
    /// The new text.
    pub text: String,
    /// What the operator should know.
    pub notes: Vec<String>,
}

/// Adds what `wish` says to the configuration `text`; says why not if it is not understood. What is
/// there already stays, so editing the result again changes nothing.
pub fn edit(text: &str, wish: &Wish) -> Result<Edited, String> {
    let parsed = text.parse();
    let mut document: DocumentMut = parsed.map_err(|error| format!("it is not TOML: {error}"))?;
    let mut notes = Vec::new();
    let version = if let Some(version) = Version::of(&document)? {
        version
    } else {
        document = with_version(text, &document)?;
        Version::Two
    };
    proxy(&mut document, wish)?;
    transfer(&mut document, &wish.name)?;
    if wish.cri && is_disabled(&document, version) {
        notes.push("CRI is disabled in this file and stays so".to_owned());
    } else if wish.cri {
        images(&mut document, version, &wish.name)?;
        registry(&mut document, version, &mut notes)?;
    }
    let edited = document.to_string();
    keeps_the_rest(text, &edited, wish, version)?;
    Ok(Edited {
        text: edited,
        notes,
    })
}

fn proxy(document: &mut DocumentMut, wish: &Wish) -> Result<(), String> {
    let keys = ["proxy_plugins", &wish.name];
    let plugin = make(document, &keys)?;
    let place = keys.join(".");
    let address = text(&wish.address)?;
    refuse_foreign(plugin, &place, Some(address))?;
    let capabilities = plugin.get("capabilities").and_then(Item::as_array);
    if capabilities.is_some_and(|all| all.iter().any(|one| one.as_str() == Some("rebase"))) {
        return Err(format!(
            "[{place}] has the capability \"rebase\", with which pulled images lose layers: remove \
             it"
        ));
    }
    put(plugin, "type", "snapshot");
    put(plugin, "address", address);
    let exports = make(document, &["proxy_plugins", &wish.name, "exports"])?;
    put(exports, "root", text(&wish.root)?);
    // A string, for containerd.
    put(exports, "enable_remote_snapshot_annotations", "true");
    Ok(())
}

/// Fails unless `plugin`, the table at `place`, can be the snapshotter that listens at `address`.
pub(super) fn refuse_foreign(
    plugin: &dyn TableLike,
    place: &str,
    address: Option<&str>,
) -> Result<(), String> {
    let kind = plugin.get("type").and_then(Item::as_str);
    if kind.is_some_and(|kind| kind != "snapshot") {
        return Err(format!(
            "[{place}] is a plugin of another type: choose another name with --snapshotter"
        ));
    }
    let owner = plugin.get("address").and_then(Item::as_str);
    match owner.filter(|owner| Some(*owner) != address && !owner.contains("larder")) {
        Some(other) => Err(format!(
            "[{place}] has the address {other}, which is not ours: choose another name with \
             --snapshotter"
        )),
        None => Ok(()),
    }
}

/// The transfer service unpacks only with the snapshotters it lists; listing one takes the default
/// away.
fn transfer(document: &mut DocumentMut, name: &str) -> Result<(), String> {
    let table = make(document, &["plugins", TRANSFER])?;
    let listed = entries(&*table);
    if listed.iter().any(|entry| entry == name) {
        return Ok(());
    }
    let missing: &[&str] = if listed.is_empty() {
        &["overlayfs", name]
    } else {
        &[name]
    };
    let is_empty_list = matches!(table.get("unpack_config"), Some(Item::Value(list))
        if list.as_array().is_some_and(Array::is_empty));
    if is_empty_list {
        table.remove("unpack_config");
    }
    if table.get("unpack_config").is_none_or(Item::is_none) {
        table.insert("unpack_config", Item::ArrayOfTables(ArrayOfTables::new()));
    }
    for name in missing {
        let keys = [
            ("platform", "linux"),
            ("snapshotter", name),
            ("differ", "walking"),
        ];
        match table.get_mut("unpack_config") {
            Some(Item::ArrayOfTables(list)) => {
                let mut entry = Table::new();
                for (key, text) in keys {
                    entry.insert(key, value(text));
                }
                list.push(entry);
            }
            Some(Item::Value(list)) if list.is_array() => {
                let mut entry = InlineTable::new();
                for (key, text) in keys {
                    entry.insert(key, text.into());
                }
                if let Some(list) = list.as_array_mut() {
                    list.push(entry);
                }
            }
            _ => {
                return Err(format!(
                    "unpack_config of {TRANSFER} is not a list of tables"
                ));
            }
        }
    }
    Ok(())
}

/// The snapshotters that the transfer service lists.
pub(super) fn entries(transfer: &dyn TableLike) -> Vec<String> {
    let name = |entry: &dyn TableLike| {
        let name = entry.get("snapshotter").and_then(Item::as_str);
        name.unwrap_or_default().to_owned()
    };
    match transfer.get("unpack_config") {
        Some(Item::ArrayOfTables(list)) => list.iter().map(|entry| name(entry)).collect(),
        Some(Item::Value(list)) => {
            let list = list.as_array().into_iter().flatten();
            list.filter_map(|entry| entry.as_inline_table())
                .map(|entry| name(entry))
                .collect()
        }
        _ => Vec::new(),
    }
}

fn images(document: &mut DocumentMut, version: Version, name: &str) -> Result<(), String> {
    let keys = version.cri_images();
    let table = make(document, keys)?;
    put(table, "snapshotter", name);
    // containerd then always tells which layer it wants.
    if table
        .get("disable_snapshot_annotations")
        .and_then(Item::as_bool)
        != Some(false)
    {
        set(table, "disable_snapshot_annotations", false.into());
    }
    if version == Version::Two {
        // Without a table of runtimes, containerd 2.x drops the two lines above when it reads a
        // file of version 2.
        let runtimes: Vec<_> = keys.iter().copied().chain(["runtimes"]).collect();
        if at(document, &runtimes).is_none_or(TableLike::is_empty) {
            let runc: Vec<_> = runtimes.into_iter().chain(["runc"]).collect();
            put(
                make(document, &runc)?,
                "runtime_type",
                "io.containerd.runc.v2",
            );
        }
    }
    Ok(())
}

/// Says where mirrors and certificates are, unless the file says it in another way.
fn registry(
    document: &mut DocumentMut,
    version: Version,
    notes: &mut Vec<String>,
) -> Result<(), String> {
    let keys = version.cri_registry();
    if let Some(registry) = at(document, keys) {
        let said = registry.get("config_path").and_then(Item::as_str);
        if said.is_some_and(|path| !path.is_empty()) {
            return Ok(());
        }
        let old = ["mirrors", "configs", "auths"].into_iter().find(|key| {
            let table = registry.get(key).and_then(Item::as_table_like);
            table.is_some_and(|table| !table.is_empty())
        });
        if let Some(old) = old {
            notes.push(format!(
                "CRI's registries are set in the old way (registry.{old}), which Larder does not \
                 read: move them to {HOSTS_DIR}, or name them in larder's own configuration"
            ));
            return Ok(());
        }
    }
    put(make(document, keys)?, "config_path", HOSTS_DIR);
    Ok(())
}

fn is_disabled(document: &DocumentMut, version: Version) -> bool {
    let disabled = document.get("disabled_plugins").and_then(Item::as_array);
    let mut disabled = disabled
        .into_iter()
        .flatten()
        .filter_map(|one| one.as_str());
    disabled.any(|one| one == version.cri() || one == Version::Two.cri())
}

/// Sets a text unless it is that already.
fn put(table: &mut dyn TableLike, key: &str, text: &str) {
    if table.get(key).and_then(Item::as_str) != Some(text) {
        set(table, key, text.into());
    }
}

/// Sets a value; the comment behind the former one stays.
fn set(table: &mut dyn TableLike, key: &str, mut new: toml_edit::Value) {
    if let Some(old) = table.get(key).and_then(Item::as_value) {
        *new.decor_mut() = old.decor().clone();
    }
    table.insert(key, Item::Value(new));
}

fn text(path: &std::path::Path) -> Result<&str, String> {
    path.to_str()
        .ok_or_else(|| format!("{} is not valid UTF-8", path.display()))
}

/// Whether all that was not asked for means what it meant. Nothing else is believed here of the way
/// texts are edited.
fn keeps_the_rest(before: &str, after: &str, wish: &Wish, version: Version) -> Result<(), String> {
    let parse = |text: &str| text.parse::<Plain>().map_err(|error| error.to_string());
    let (mut before, mut after) = (parse(before)?, parse(after)?);
    for table in [&mut before, &mut after] {
        let transfer = ["plugins", TRANSFER, "unpack_config"];
        let mut ours = vec![
            vec!["version"],
            vec!["disabled_plugins"],
            vec!["required_plugins"],
            vec!["proxy_plugins", &wish.name],
            transfer.to_vec(),
        ];
        for key in ["snapshotter", "disable_snapshot_annotations"] {
            ours.push([version.cri_images(), &[key]].concat());
        }
        ours.push([version.cri_images(), &["runtimes", "runc", "runtime_type"]].concat());
        ours.push([version.cri_registry(), &["config_path"]].concat());
        for keys in ours {
            strip(table, &keys);
        }
    }
    if before == after {
        Ok(())
    } else {
        Err(
            "it is written in a way that this program cannot edit safely; add the lines of \
             docs/CONFIGURATION.md by hand"
                .into(),
        )
    }
}

/// Removes a value, and tables that are empty with it or were before.
fn strip(table: &mut Plain, keys: &[&str]) {
    let Some((first, rest)) = keys.split_first() else {
        return;
    };
    if rest.is_empty() {
        table.remove(*first);
    } else if let Some(toml::Value::Table(inner)) = table.get_mut(*first) {
        strip(inner, rest);
        if inner.is_empty() {
            table.remove(*first);
        }
    }
}
