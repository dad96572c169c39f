//! The text of a configuration without our tables, when somebody else has changed it meanwhile.

use toml_edit::{Array, DocumentMut, Item, TableLike};

use super::document::{TRANSFER, Version, at, make, plugin, remove};
use super::edit::{entries, refuse_foreign};

/// By what a plugin is known to be ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner<'a> {
    /// `install` wrote it.
    Known,
    /// It listens here, or its address says so.
    At(Option<&'a str>),
}

/// Takes the snapshotter `name` out of the configuration `text`. What was said before it, in
/// `before`, is said again. The plugin of that name has to be `owner`'s.
pub(super) fn undo(
    text: &str,
    before: &str,
    name: &str,
    owner: Owner<'_>,
) -> Result<String, String> {
    let parse = |text: &str| {
        text.parse::<DocumentMut>()
            .map_err(|error| error.to_string())
    };
    let (mut document, before) = (parse(text)?, parse(before)?);
    if let Owner::At(address) = owner
        && let Some(plugin) = at(&document, &["proxy_plugins", name])
    {
        refuse_foreign(plugin, &format!("proxy_plugins.{name}"), address)?;
    }
    let version = Version::of(&document)?.ok_or("it has no version any more")?;
    remove(&mut document, &["proxy_plugins"], name);
    transfer(&mut document, &before, name);
    cri(&mut document, &before, version, name)?;
    Ok(document.to_string())
}

fn transfer(document: &mut DocumentMut, before: &DocumentMut, name: &str) {
    let Some(now) = plugin(document, TRANSFER) else {
        return;
    };
    let others: Vec<_> = entries(now).into_iter().filter(|one| one != name).collect();
    let had_none = plugin(before, TRANSFER).is_none_or(|before| entries(before).is_empty());
    let keys = ["plugins", TRANSFER];
    // The one beside it was only there to repeat the default.
    if had_none && others.iter().all(|one| one == "overlayfs") {
        remove(document, &keys, "unpack_config");
        return;
    }
    let is_ours =
        |entry: &dyn TableLike| entry.get("snapshotter").and_then(Item::as_str) == Some(name);
    let Ok(table) = make(document, &keys) else {
        return;
    };
    match table.get_mut("unpack_config") {
        Some(Item::ArrayOfTables(list)) => list.retain(|entry| !is_ours(entry)),
        Some(Item::Value(list)) => {
            if let Some(list) = list.as_array_mut() {
                Array::retain(list, |entry| {
                    !entry.as_inline_table().is_some_and(|entry| is_ours(entry))
                });
            }
        }
        _ => {}
    }
}

fn cri(
    document: &mut DocumentMut,
    before: &DocumentMut,
    version: Version,
    name: &str,
) -> Result<(), String> {
    let keys = version.cri_images();
    let ours = at(document, keys).and_then(|table| table.get("snapshotter")?.as_str());
    if ours != Some(name) {
        return Ok(());
    }
    for key in ["snapshotter", "disable_snapshot_annotations"] {
        restore(document, before, keys, key)?;
    }
    restore(document, before, version.cri_registry(), "config_path")?;
    let runc: Vec<_> = keys.iter().copied().chain(["runtimes", "runc"]).collect();
    let runtime = at(document, &runc);
    if at(before, &runc).is_none() && runtime.is_some_and(|table| table.len() == 1) {
        restore(document, before, &runc, "runtime_type")?;
    }
    Ok(())
}

/// Gives a key the value it had, or none.
fn restore(
    document: &mut DocumentMut,
    before: &DocumentMut,
    keys: &[&str],
    key: &str,
) -> Result<(), String> {
    match at(before, keys).and_then(|table| table.get(key)) {
        Some(was) => {
            let was = was.clone();
            make(document, keys)?.insert(key, was);
        }
        None => remove(document, keys, key),
    }
    Ok(())
}
