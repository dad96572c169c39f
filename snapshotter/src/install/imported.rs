//! containerd's configuration with the files it imports.

use std::fs;
use std::path::{Path, PathBuf};

use larder_registry::bounded;
use toml::Table;

use super::files::CONFIG_BYTES_MAX;

/// Files read at most, against files that import each other. Directories of fragments hold a few.
const FILES_MAX: usize = 64;

/// Tables whose entries are taken whole from the file that comes last, as containerd does.
const BY_ENTRY: [&str; 2] = ["plugins", "proxy_plugins"];

/// Reads `file` and what it imports; the error names the file at fault.
pub(crate) fn read(file: &Path) -> Result<Table, String> {
    read_without(file, None)
}

/// The same as if `left_out` were not there.
pub(crate) fn read_without(file: &Path, left_out: Option<&Path>) -> Result<Table, String> {
    let mut merged = Table::new();
    let mut waiting = vec![file.to_owned()];
    let mut seen = Vec::new();
    while let Some(file) = waiting.pop() {
        let is_left_out = left_out == Some(file.as_path());
        if is_left_out || seen.contains(&file) || seen.len() >= FILES_MAX {
            continue;
        }
        let wrong = |error: &dyn std::fmt::Display| format!("read {}: {error}", file.display());
        let text = bounded::read_text(&file, CONFIG_BYTES_MAX);
        let text = text.map_err(|error| wrong(&error))?;
        let table: Table = text.parse().map_err(|error| wrong(&error))?;
        let folder = file.parent().unwrap_or(Path::new("/"));
        let names = table.get("imports").and_then(toml::Value::as_array);
        let mut found = Vec::new();
        for name in names.into_iter().flatten().filter_map(toml::Value::as_str) {
            found.extend(matches(&folder.join(name)));
        }
        waiting.extend(found.into_iter().rev());
        merge(&mut merged, table);
        seen.push(file);
    }
    Ok(merged)
}

/// The files a name with at most one `*` in its last part stands for, in order.
fn matches(pattern: &Path) -> Vec<PathBuf> {
    let name = pattern.file_name().and_then(|name| name.to_str());
    let (Some((before, after)), Some(folder)) =
        (name.and_then(|name| name.split_once('*')), pattern.parent())
    else {
        return vec![pattern.to_owned()];
    };
    let fits = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        let rest = name.and_then(|name| name.strip_prefix(before));
        rest.is_some_and(|rest| rest.ends_with(after))
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries.map(|entry| entry.path()).filter(fits).collect();
    found.sort();
    found
}

fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new))
                if BY_ENTRY.contains(&&*key) =>
            {
                old.extend(new);
            }
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: a block that lies in a directory of fragments counts as if it stood in the file.
    #[test]
    fn imported_files_count() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        fs::create_dir(dir.path().join("conf.d")).unwrap();
        write(
            "config.toml",
            "version = 2\nimports = [\"conf.d/*.toml\", \"more.toml\"]\n[plugins.a]\nx = 1\ny = 1\n",
        );
        write("conf.d/10.toml", "[plugins.a]\nx = 2\n[plugins.b]\nz = 1\n");
        write("conf.d/readme", "no TOML");
        write(
            "more.toml",
            "imports = [\"config.toml\"]\n[proxy_plugins.c]\n",
        );
        let merged = read(&dir.path().join("config.toml")).unwrap();
        assert_eq!(
            merged["plugins"].to_string(),
            "{ a = { x = 2 }, b = { z = 1 } }"
        );
        assert!(merged["proxy_plugins"].get("c").is_some());
        write("more.toml", "= 1");
        let error = read(&dir.path().join("config.toml")).unwrap_err();
        assert!(error.contains("more.toml"), "{error}");
    }
}
