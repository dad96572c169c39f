//! The configuration against a table.

use std::fs;

use super::*;

fn load(text: &str, overrides: &Overrides) -> Result<Config, ConfigError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    Config::load(Some(file.path()), overrides)
}

#[test]
fn an_empty_file_gives_the_documented_defaults() {
    let config = load("", &Overrides::default()).unwrap();
    assert_eq!(config.root, Path::new("/var/lib/larder"));
    assert_eq!(config.address, Path::new("/run/larder/larder.sock"));
    assert_eq!(config.prepare_deadline, Duration::from_secs(2));
    assert_eq!(config.read_deadline, Duration::from_secs(30));
    assert_eq!(config.min_free_percent, 5);
    assert_eq!((config.store_bytes_max, config.keep_removed), (0, false));
    assert_eq!(config.background_bandwidth, 0);
    assert!(config.profiles);
}

/// Promise: the example in deploy/ names every key with its default.
#[test]
fn the_example_is_the_default() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/config.toml");
    let example = Config::load(Some(Path::new(example)), &Overrides::default()).unwrap();
    assert_eq!(example, load("", &Overrides::default()).unwrap());
}

#[test]
fn flags_win_over_the_file() {
    let overrides = Overrides {
        root: Some("/flag".into()),
        fs_driver: Some(Driver::Fuse),
        ..Overrides::default()
    };
    let config = load("root = \"/file\"\nfs_driver = \"erofs\"", &overrides).unwrap();
    assert_eq!(
        (config.root.as_path(), config.fs_driver),
        (Path::new("/flag"), Driver::Fuse)
    );
}

/// Promise: `pull` and `fetch-blobs` find containerd by flag, then configuration, then default.
#[test]
fn containerds_socket_is_that_of_flag_file_or_default_in_this_order() {
    let flag = Overrides {
        containerd: Some("/flag.sock".into()),
        ..Overrides::default()
    };
    let file = "[containerd]\naddress = \"/file.sock\"";
    for (text, overrides, expected) in [
        (file, &flag, "/flag.sock"),
        (file, &Overrides::default(), "/file.sock"),
        ("", &Overrides::default(), "/run/containerd/containerd.sock"),
    ] {
        let config = load(text, overrides).unwrap();
        assert_eq!(config.containerd, Path::new(expected));
    }
}

#[test]
fn bad_values_are_refused_by_name() {
    let long = format!("address = \"/{}\"", "a".repeat(socket::PATH_BYTES_MAX));
    for (text, named) in [
        ("rooot = \"/x\"", "rooot"),
        ("root = 3", "root"),
        ("root = \"relative\"", "absolute"),
        ("root = \"/a:b\"", "colon"),
        ("fs_driver = \"ext4\"", "ext4"),
        ("mount_plan = \"heap\"", "heap"),
        ("prepare_deadline_ms = 0", "prepare_deadline_ms"),
        ("prepare_deadline_ms = 60000", "prepare_deadline_ms"),
        ("read_deadline_seconds = 0", "read_deadline_seconds"),
        ("min_free_percent = 90", "min_free_percent"),
        ("store_bytes_max = 50", "is a unit missing?"),
        ("store_bytes_max = \"50 gigabytes\"", "store_bytes_max"),
        ("store_bytes_max = -1", "negative"),
        ("keep_removed = 1", "keep_removed"),
        ("background_bandwidth = \"fast\"", "background_bandwidth"),
        ("background_bandwidth = 1", "is a unit missing?"),
        ("background_bandwidth = \"127KiB\"", "128 KiB"),
        ("[registry]\ninsecure = true", "insecure"),
        (&long, "longer"),
    ] {
        let error = load(text, &Overrides::default()).unwrap_err().to_string();
        assert!(error.contains(named), "{text}: {error}");
    }
}

#[test]
fn a_limit_of_the_store_may_have_a_unit() {
    for text in ["50000000000", "\"50GB\"", "\"50 GB\""] {
        let text = format!("store_bytes_max = {text}");
        let config = load(&text, &Overrides::default()).unwrap();
        assert_eq!(config.store_bytes_max, 50_000_000_000);
    }
}

#[test]
fn a_named_file_must_exist() {
    let missing = Path::new("/nonexistent/larder.toml");
    let error = Config::load(Some(missing), &Overrides::default()).unwrap_err();
    assert!(matches!(error, ConfigError::Read { .. }));
}
