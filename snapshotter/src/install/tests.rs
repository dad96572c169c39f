//! Configurations as people have them. That containerd loads the results is tested in `tests/node`.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use toml::{Table, Value};

use super::*;

fn wish() -> Wish {
    Wish {
        name: "larder".into(),
        address: "/run/larder/larder.sock".into(),
        root: "/var/lib/larder".into(),
        cri: true,
    }
}

/// What Debian's package installs, and kubeadm's users add.
const DEBIAN: &str = r#"# a node of ours
version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"       # Debian's place
      conf_dir = "/etc/cni/net.d"
    [plugins."io.containerd.grpc.v1.cri".containerd]
      snapshotter = "overlayfs"   # the default
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
        runtime_type = "io.containerd.runc.v2"
        [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
          SystemdCgroup = true
  [plugins."io.containerd.internal.v1.opt"]
    path = "/var/lib/containerd"
# the end
"#;

const VERSION_3: &str = r"version = 3

[plugins.'io.containerd.cri.v1.images']
  max_concurrent_downloads = 3
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = 'r.test/pause:1'

[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
  platform = 'linux/amd64'
  snapshotter = 'overlayfs'
";

const INLINE: &str = r#"version = 2
proxy_plugins.other = { type = "snapshot", address = "/run/other.sock" }
plugins."io.containerd.grpc.v1.cri".containerd = { default_runtime_name = "runc", runtimes = { runc = { runtime_type = "io.containerd.runc.v2" } } }
plugins."io.containerd.transfer.v1.local".unpack_config = [{ platform = "linux", snapshotter = "overlayfs" }] # short
"#;

const DOCKER: &str = r#"#   Copyright of somebody

disabled_plugins = ["cri"]

#root = "/var/lib/containerd"
"#;

fn value<'a>(table: &'a Table, keys: &[&str]) -> Option<&'a Value> {
    let (last, above) = keys.split_last()?;
    let mut table = table;
    for key in above {
        table = table.get(*key)?.as_table()?;
    }
    table.get(*last)
}

fn text<'a>(table: &'a Table, keys: &[&str]) -> &'a str {
    value(table, keys).and_then(Value::as_str).unwrap_or("")
}

/// Snapshotters that the transfer service unpacks with.
fn unpacks(table: &Table) -> Vec<&str> {
    let keys = [
        "plugins",
        "io.containerd.transfer.v1.local",
        "unpack_config",
    ];
    let list = value(table, &keys).and_then(Value::as_array);
    let list = list.into_iter().flatten();
    list.filter_map(|entry| entry.get("snapshotter")?.as_str())
        .collect()
}

const CRI: [&str; 3] = ["plugins", "io.containerd.grpc.v1.cri", "containerd"];
const CRI_IMAGES: [&str; 2] = ["plugins", "io.containerd.cri.v1.images"];

/// Promise: whatever the file looks like, it says afterwards what lazy loading needs, and editing it
/// again changes nothing.
#[test]
fn every_form_of_configuration_gets_what_lazy_loading_needs() {
    for (name, before) in [
        ("empty", ""),
        ("comment", "# nothing yet\n"),
        ("debian", DEBIAN),
        ("version 3", VERSION_3),
        ("inline", INLINE),
        ("no end of line", "version = 2"),
    ] {
        let edited = edit(before, &wish()).unwrap_or_else(|why| panic!("{name}: {why}"));
        let table: Table = edited.text.parse().unwrap();
        let proxy = |key| text(&table, &["proxy_plugins", "larder", key]);
        assert_eq!(proxy("type"), "snapshot", "{name}");
        assert_eq!(proxy("address"), "/run/larder/larder.sock", "{name}");
        let export = |key| text(&table, &["proxy_plugins", "larder", "exports", key]);
        assert_eq!(export("root"), "/var/lib/larder", "{name}");
        assert_eq!(
            export("enable_remote_snapshot_annotations"),
            "true",
            "{name}"
        );
        assert_eq!(unpacks(&table), ["overlayfs", "larder"], "{name}");
        let images = if name == "version 3" {
            &CRI_IMAGES[..]
        } else {
            &CRI
        };
        let cri = |key| [images, &[key]].concat();
        assert_eq!(text(&table, &cri("snapshotter")), "larder", "{name}");
        let annotations = value(&table, &cri("disable_snapshot_annotations"));
        assert_eq!(annotations, Some(&Value::Boolean(false)), "{name}");
        assert_eq!(
            edit(&edited.text, &wish()).unwrap().text,
            edited.text,
            "{name}"
        );
    }
}

/// Promise: comments and settings of others stay, each line of them.
#[test]
fn what_others_wrote_stays_word_for_word() {
    for before in [DEBIAN, VERSION_3, DOCKER] {
        let after = edit(before, &wish()).unwrap().text;
        for line in before.lines() {
            let replaced =
                line.contains("snapshotter = \"overlayfs\"") || line.contains("[\"cri\"]");
            assert!(
                replaced || after.contains(line),
                "{line:?} is not in\n{after}"
            );
        }
    }
    let after = edit(DEBIAN, &wish()).unwrap().text;
    assert!(
        after.contains("snapshotter = \"larder\"   # the default"),
        "{after}"
    );
    let table: Table = after.parse().unwrap();
    let cgroup = [&CRI[..], &["runtimes", "runc", "options", "SystemdCgroup"]].concat();
    assert_eq!(value(&table, &cgroup), Some(&Value::Boolean(true)));
}

/// Promise: Docker's file, which has no version and switches CRI off, keeps CRI off.
#[test]
fn dockers_file_keeps_cri_off() {
    let edited = edit(DOCKER, &wish()).unwrap();
    let table: Table = edited.text.parse().unwrap();
    assert_eq!(table["version"], Value::Integer(2));
    let disabled = table["disabled_plugins"].as_array().unwrap();
    assert_eq!(disabled[0].as_str(), Some("io.containerd.grpc.v1.cri"));
    assert_eq!(
        value(&table, &["plugins", "io.containerd.grpc.v1.cri"]),
        None
    );
    assert_eq!(
        text(&table, &["proxy_plugins", "larder", "type"]),
        "snapshot"
    );
    assert_eq!(edited.notes.len(), 1, "{:?}", edited.notes);
    assert!(
        edited.text.starts_with("#   Copyright of somebody"),
        "{}",
        edited.text
    );
}

/// Promise: what is not understood is left alone, and one sentence says why and what to do.
#[test]
fn what_is_not_understood_is_refused_in_a_sentence() {
    for (before, said) in [
        ("version = 1\n", "version 1"),
        ("version = 4\n", "knows 2 and 3"),
        ("version = \"2\"\n", "not a number"),
        (
            "[plugins.cri]\nstream_server_port = \"0\"\n",
            "containerd config migrate",
        ),
        ("disabled_plugins = [\"aufs\"]\n", "short name"),
        (
            "version = 2\n[plugins.\"io.containerd.cri.v1.images\"]\n",
            "belongs to version 3",
        ),
        ("version = 2\nplugins = 7\n", "plugins is not a table"),
        (
            "version = 2\n[proxy_plugins.larder]\ntype = \"content\"\n",
            "another type",
        ),
        (
            "version = 2\n[proxy_plugins.larder]\ntype = \"snapshot\"\naddress = \"/run/x.sock\"\n",
            "--snapshotter",
        ),
        (
            "version = 2\n[proxy_plugins.larder]\ncapabilities = [\"rebase\"]\n",
            "lose layers",
        ),
        (
            "version = 2\n[plugins.\"io.containerd.transfer.v1.local\"]\nunpack_config = 1\n",
            "not a list",
        ),
        ("version = \n", "TOML"),
    ] {
        let why = edit(before, &wish()).expect_err(before);
        assert!(why.contains(said), "{before}: {why}");
    }
}

/// Promise: registries that are set in the old way stay; containerd refuses both ways in one file.
#[test]
fn registries_set_in_the_old_way_stay() {
    let registry = [&CRI[..2], &["registry", "config_path"]].concat();
    let of = |more: &str| {
        let text =
            format!("version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n{more}\n");
        let edited = edit(&text, &wish()).unwrap();
        let table: Table = edited.text.parse().unwrap();
        (self::text(&table, &registry).to_owned(), edited.notes.len())
    };
    let mirror = "[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\nendpoint = [\"https://m.test\"]";
    assert_eq!(of(mirror), (String::new(), 1));
    assert_eq!(of("config_path = \"/etc/other\""), ("/etc/other".into(), 0));
    assert_eq!(
        of("config_path = \"\""),
        ("/etc/containerd/certs.d".into(), 0)
    );
}

/// A configuration in a folder of its own.
struct Place(tempfile::TempDir);

impl Place {
    fn new(text: Option<&str>) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        if let Some(text) = text {
            fs::write(place.config(), text).unwrap();
            fs::set_permissions(place.config(), fs::Permissions::from_mode(0o640)).unwrap();
        }
        place
    }

    fn config(&self) -> PathBuf {
        self.0.path().join("config.toml")
    }

    fn files(&self) -> Files {
        Files::new(&self.config(), true)
    }

    fn install(&self) -> Change {
        let files = self.files();
        let change = install(&files, &wish()).unwrap();
        files.write_installed(&change, "larder").unwrap();
        change
    }

    fn uninstall(&self) -> Change {
        let files = self.files();
        let change = uninstall(&files, "larder", Some(&wish().address)).unwrap();
        files.write_uninstalled(&change).unwrap();
        change
    }

    fn text(&self) -> String {
        fs::read_to_string(self.config()).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

/// Promise: a file that nobody changed since is what it was before, byte for byte, with its mode;
/// nothing is left beside it.
#[test]
fn uninstalling_gives_back_every_byte() {
    let odd = DEBIAN.replace('\n', "\r\n");
    for before in [
        DEBIAN,
        VERSION_3,
        INLINE,
        DOCKER,
        "",
        &odd,
        "# x\nversion=2",
    ] {
        let place = Place::new(Some(before));
        place.install();
        assert_ne!(place.text(), before);
        assert_eq!(
            fs::metadata(place.config()).unwrap().permissions().mode() & 0o777,
            0o640
        );
        let again = place.install();
        assert!(again.is_none(), "{again:?}");
        place.uninstall();
        assert_eq!(place.text(), before);
        assert_eq!(place.names(), ["config.toml"]);
    }
    let place = Place::new(None);
    place.install();
    assert_eq!(
        fs::metadata(place.config()).unwrap().permissions().mode() & 0o777,
        0o600
    );
    place.uninstall();
    assert_eq!(place.names(), [""; 0]);
}

/// Promise: what others changed after the installation stays when it is undone, and our tables go.
#[test]
fn uninstalling_keeps_what_others_changed_since() {
    for (before, images) in [(DEBIAN, &CRI[..]), (VERSION_3, &CRI_IMAGES), (INLINE, &CRI)] {
        let place = Place::new(Some(before));
        place.install();
        let changed = format!("{}\n[debug]\n  level = \"debug\" # mine\n", place.text());
        fs::write(place.config(), &changed).unwrap();
        place.uninstall();
        let after = place.text();
        assert!(after.contains("level = \"debug\" # mine"), "{after}");
        let mut table: Table = after.parse().unwrap();
        table.remove("debug");
        let mut expected: Table = before.parse().unwrap();
        for table in [&mut expected, &mut table] {
            // Empty tables may be left.
            prune(table);
        }
        assert_eq!(table, expected, "{after}");
        assert!(!after.contains("larder"), "{images:?}: {after}");
    }
}

/// Promise: installing again over changes of others is no reason to lose them when it is undone.
#[test]
fn installing_over_changes_of_others_keeps_them_for_ever() {
    let place = Place::new(Some(DEBIAN));
    place.install();
    let changed = place
        .text()
        .replace("/etc/cni/net.d", "/mine")
        .replace("[proxy_plugins.larder]", "[proxy_plugins.was]");
    fs::write(place.config(), &changed).unwrap();
    let second = place.install();
    assert!(!second.is_none());
    place.uninstall();
    let after = place.text();
    assert!(after.contains("/mine"), "{after}");
    assert!(after.contains("[proxy_plugins.was]"), "{after}");
    assert!(after.contains("snapshotter = \"overlayfs\""), "{after}");
}

fn prune(table: &mut Table) {
    for (_, value) in table.iter_mut() {
        if let Value::Table(inner) = value {
            prune(inner);
        }
    }
    table.retain(|_, value| !matches!(value, Value::Table(inner) if inner.is_empty()));
}

/// Promise: lines written by hand, as the documentation has them, are taken out as well; a file
/// without ours is not touched.
#[test]
fn lines_written_by_hand_are_taken_out() {
    let documented = include_str!("../../../docs/CONFIGURATION.md");
    let block = documented.split("```toml\n").nth(1).unwrap();
    let block = block.split("```").next().unwrap();
    assert_eq!(edit(block, &wish()).unwrap().text, block);
    let place = Place::new(Some(block));
    place.uninstall();
    assert!(!place.text().contains("larder.sock"), "{}", place.text());
    let place = Place::new(Some(DEBIAN));
    assert!(place.uninstall().is_none());
    assert_eq!(place.text(), DEBIAN);
}

/// Promise: a plugin of the name that somebody else wrote is refused as `install` refuses it, and stays.
#[test]
fn a_plugin_of_somebody_else_is_not_taken_out() {
    let theirs = "version = 2\n[proxy_plugins.larder]\naddress = \"/other.sock\"\n";
    let content = "version = 2\n[proxy_plugins.larder]\ntype = \"content\"\n";
    for (text, said) in [(theirs, "not ours"), (content, "another type")] {
        let place = Place::new(Some(text));
        let installing = install(&place.files(), &wish()).unwrap_err().to_string();
        for address in [None, Some(wish().address)] {
            let refused = uninstall(&place.files(), "larder", address.as_deref());
            let refused = refused.unwrap_err().to_string();
            assert!(refused.contains(said), "{refused}");
            assert_eq!(refused, installing);
        }
        assert_eq!(place.text(), text);
    }
    // Ours after all, by the configuration of the snapshotter.
    let place = Place::new(Some(theirs));
    let ours = uninstall(&place.files(), "larder", Some("/other.sock".as_ref())).unwrap();
    assert!(!ours.after.unwrap().contains("larder"));
    // Installed by us, and given away since.
    let place = Place::new(Some(DEBIAN));
    place.install();
    let address = wish().address.to_string_lossy().into_owned();
    fs::write(
        place.config(),
        place.text().replace(&address, "/other.sock"),
    )
    .unwrap();
    let refused = uninstall(&place.files(), "larder", Some(&wish().address)).unwrap_err();
    assert!(refused.to_string().contains("not ours"), "{refused}");
}

/// Promise: where containerd imports a directory and nothing of ours is set elsewhere, ours is a
/// file of its own there; otherwise it would take away what others set, and the file is edited.
#[test]
fn a_directory_of_fragments_is_used_where_it_takes_nothing_away() {
    let imports = "version = 2\nimports = [\"conf.d/*.toml\"]\n";
    let place = Place::new(Some(imports));
    let change = place.install();
    let fragment = place.0.path().join("conf.d/larder.toml");
    assert_eq!(
        change.file,
        fs::canonicalize(place.0.path())
            .unwrap()
            .join("conf.d/larder.toml")
    );
    assert_eq!(place.text(), imports);
    let table: Table = fs::read_to_string(&fragment).unwrap().parse().unwrap();
    assert_eq!(
        text(&table, &["proxy_plugins", "larder", "type"]),
        "snapshot"
    );
    assert!(place.install().is_none());
    place.uninstall();
    assert!(!fragment.exists());
    assert_eq!(place.names(), ["conf.d", "config.toml"]);
    // CRI's table is set already, here or in another fragment.
    let cri = "[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"r.test/pause:1\"\n";
    let place = Place::new(Some(&format!("{imports}{cri}")));
    assert_eq!(
        place.install().file,
        fs::canonicalize(place.config()).unwrap()
    );
    let place = Place::new(Some(imports));
    fs::create_dir(place.0.path().join("conf.d")).unwrap();
    fs::write(
        place.0.path().join("conf.d/10-cri.toml"),
        format!("version = 2\n{cri}"),
    )
    .unwrap();
    assert_eq!(
        place.install().file,
        fs::canonicalize(place.config()).unwrap()
    );
    // A file of that name that somebody else wrote.
    let place = Place::new(Some(imports));
    fs::create_dir(place.0.path().join("conf.d")).unwrap();
    fs::write(place.0.path().join("conf.d/larder.toml"), "version = 2\n").unwrap();
    let refused = install(&place.files(), &wish()).unwrap_err();
    assert!(refused.to_string().contains("--in-place"), "{refused}");
}

/// Promise: a configuration that is a link stays one.
#[test]
fn a_link_is_followed() {
    let place = Place::new(Some(DEBIAN));
    let link = place.0.path().join("link.toml");
    std::os::unix::fs::symlink(place.config(), &link).unwrap();
    let files = Files::new(&link, true);
    let change = install(&files, &wish()).unwrap();
    files.write_installed(&change, "larder").unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(place.text().contains("proxy_plugins.larder"));
}
