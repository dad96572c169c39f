//! Images made by hand, and the command run on them.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use larder_proto::digest::Digest;
use larder_test_support::tar::{Entry, TarBuilder};
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(crate) const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
pub(crate) const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
pub(crate) const DOCKER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// A directory of its own for each test: source, destination, cache and temporary files.
pub(crate) struct World {
    dir: TempDir,
}

/// What a run of the command gave.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        self
    }

    #[track_caller]
    pub(crate) fn json(self) -> Value {
        serde_json::from_str(&self.ok().out).unwrap()
    }
}

impl World {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["source/blobs/sha256", "tmp"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        fs::write(
            dir.path().join("source/oci-layout"),
            r#"{"imageLayoutVersion":"1.0.0"}"#,
        )
        .unwrap();
        Self { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The command with these arguments; `@` stands for the test's directory, except in digests.
    pub(crate) fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
        let dir = format!("{}/", self.dir.path().display());
        command
            .args(
                arguments
                    .split_whitespace()
                    .map(|argument| argument.replace("@sha256:", "\0").replace('@', &dir))
                    .map(|argument| argument.replace('\0', "@sha256:")),
            )
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env("TMPDIR", self.path("tmp"));
        command
    }

    pub(crate) fn larder(&self, arguments: &str) -> Ran {
        run(&mut self.command(arguments))
    }

    /// Puts a blob into the source layout.
    pub(crate) fn blob(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        fs::write(self.blob_path("source", &digest.to_string()), bytes).unwrap();
        digest
    }

    pub(crate) fn blob_path(&self, layout: &str, digest: &str) -> PathBuf {
        self.path(layout)
            .join("blobs/sha256")
            .join(digest.strip_prefix("sha256:").unwrap())
    }

    /// A document of a layout by its digest.
    pub(crate) fn document(&self, layout: &str, digest: &str) -> Value {
        serde_json::from_slice(&fs::read(self.blob_path(layout, digest)).unwrap()).unwrap()
    }

    /// Puts a document into the source layout and gives its descriptor.
    pub(crate) fn put(&self, kind: &str, value: &Value) -> Value {
        let bytes = value.to_string().into_bytes();
        let digest = self.blob(&bytes).to_string();
        json!({"mediaType": kind, "digest": digest, "size": bytes.len()})
    }

    /// A layer's descriptor; its blob is put into the source layout.
    pub(crate) fn layer(&self, kind: &str, blob: &[u8]) -> Value {
        let digest = self.blob(blob).to_string();
        json!({"mediaType": kind, "digest": digest, "size": blob.len()})
    }

    /// Puts an OCI image of these layers, with the tars its config is to name.
    pub(crate) fn image(&self, architecture: &str, layers: &[Value], tars: &[&[u8]]) -> Value {
        self.image_as((MANIFEST, CONFIG), architecture, layers, tars)
    }

    pub(crate) fn image_as(
        &self,
        (manifest, config): (&str, &str),
        architecture: &str,
        layers: &[Value],
        tars: &[&[u8]],
    ) -> Value {
        let diff_ids: Vec<_> = tars.iter().map(|tar| Digest::of(tar).to_string()).collect();
        let value = json!({
            "os": "linux", "architecture": architecture, "config": {"Cmd": ["/bin/true"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = self.put(config, &value);
        let value =
            json!({"schemaVersion": 2, "mediaType": manifest, "config": config, "layers": layers});
        self.put(manifest, &value)
    }

    /// An image of one gzip layer.
    pub(crate) fn simple(&self, tar: &[u8]) -> Value {
        self.image("amd64", &[self.layer(GZIP, &gzip(tar))], &[tar])
    }

    /// Names the source layout's only image.
    pub(crate) fn tag(&self, descriptor: &Value) {
        let mut entry = descriptor.clone();
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
        let index = json!({"schemaVersion": 2, "manifests": [entry]});
        fs::write(self.path("source/index.json"), index.to_string()).unwrap();
    }

    /// The root document's digest of a layout.
    pub(crate) fn root(&self, layout: &str) -> String {
        let index = fs::read(self.path(layout).join("index.json")).unwrap();
        let index: Value = serde_json::from_slice(&index).unwrap();
        index["manifests"][0]["digest"].as_str().unwrap().to_owned()
    }

    /// Asserts that a failed run left neither a destination nor temporary files.
    #[track_caller]
    pub(crate) fn nothing_left(&self) {
        assert!(!self.path("dest").exists(), "a destination was left");
        let left: Vec<_> = fs::read_dir(self.path("tmp")).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

pub(crate) fn run(command: &mut Command) -> Ran {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: text(&output.stdout),
        err: text(&output.stderr),
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A base layer: a few directories, a link, a large file.
pub(crate) fn base() -> Vec<u8> {
    let lines: Vec<_> = (0..60_000)
        .map(|line| {
            format!(
                "line {line} of the large file
"
            )
        })
        .collect();
    TarBuilder::new()
        .entry(Entry::directory("etc/"))
        .entry(Entry::file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"))
        .entry(Entry::file("etc/old", "old\n"))
        .entry(Entry::directory("usr/"))
        .entry(Entry::file("usr/large", lines.concat()))
        .entry(
            Entry::file("usr/tool", "#!/bin/sh\n")
                .mode(0o4755)
                .owner(1, 2)
                .mtime(1_700_000_000),
        )
        .entry(Entry::symlink("bin", "usr"))
        .finish()
}

/// A layer upon it that changes, removes and adds.
pub(crate) fn change() -> Vec<u8> {
    TarBuilder::new()
        .entry(Entry::file("etc/.wh.old", ""))
        .entry(Entry::file("etc/passwd", "changed\n"))
        .entry(Entry::file("var/new", "new\n"))
        .finish()
}

/// Whether a directory holds no file of this name's beginning.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
