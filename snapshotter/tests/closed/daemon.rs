//! A daemon as it runs on a node, and everything it says.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use larder_fuse::mount::{Unmount, mounts, unmount};
use larder_proto::annotation;
use larder_proto::digest::Digest;
use larder_proto::grpc::snapshots::snapshots_client::SnapshotsClient;
use larder_proto::grpc::snapshots::{ListSnapshotsRequest, PrepareSnapshotRequest};
use larder_snapshotter::socket::Connector;
use larder_snapshotter::store::REF_LABEL;
use larder_test_support::layer::LayerFixture;
use larder_test_support::registry::{Auth, Cdn, FakeRegistry, Settings};
use larder_test_support::tar::{Entry, TarBuilder};
use serde_json::json;
use tonic::Code;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const USER: &str = "canary-user";
pub(crate) const PASSWORD: &str = "canary-password";

/// What must not be found anywhere: the canaries, the two as a header has them, and what tokens of the
/// registry are called.
const SECRETS: [&str; 5] = ["canary", "Y2FuYXJ5", "token-1", "token-2", "token-3"];

/// A registry with log-in and signed URLs, and a daemon that asks it.
pub(crate) struct World {
    pub(crate) registry: FakeRegistry,
    scratch: tempfile::TempDir,
    daemon: Option<Child>,
    containerd: Option<Child>,
    layers: Vec<LayerFixture>,
    /// Everything that was said to somebody.
    pub(crate) said: Vec<String>,
}

impl World {
    pub(crate) fn new() -> Self {
        let registry = FakeRegistry::start_now(Settings {
            auth: Auth::Token {
                account: Some((USER.into(), PASSWORD.into())),
                identity: None,
                lifetime: Duration::from_mins(5),
            },
            cdn: Some(Cdn {
                query: "X-Amz-Signature=canary-signature&X-Amz-Credential=canary%2Fkey".into(),
                hops: 1,
                ..Cdn::default()
            }),
            ..Settings::default()
        });
        let layers: Vec<_> = (0..10).map(layer).collect();
        for layer in &layers {
            registry.push_blob(layer.blob.clone());
        }
        let world = Self {
            registry,
            scratch: tempfile::tempdir().unwrap(),
            daemon: None,
            containerd: None,
            layers,
            said: Vec::new(),
        };
        world.log_in(PASSWORD);
        let host = world.registry.host();
        let hosts = world.path("certs.d").join(&host);
        fs::create_dir_all(&hosts).unwrap();
        let header = "[header]\nX-Larder-Test = \"canary-header\"\n";
        fs::write(
            hosts.join("hosts.toml"),
            format!("server = \"http://{host}\"\n{header}"),
        )
        .unwrap();
        let config = format!(
            "read_deadline_seconds = 1\n[log]\nlevel = \"trace\"\nformat = \"json\"\n\
             [containerd]\naddress = \"{}\"\n[registry]\nauthfile = \"{}\"\nhosts_dir = \"{}\"\n",
            world.path("none.sock").display(),
            world.path("auth.json").display(),
            world.path("certs.d").display()
        );
        fs::write(world.path("config.toml"), config).unwrap();
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().canonicalize().unwrap().join(name)
    }

    pub(crate) fn log_in(&self, password: &str) {
        let host = self.registry.host();
        let entry = format!(r#"{{"username": "{USER}", "password": "{password}"}}"#);
        let file = format!(r#"{{"auths": {{"{host}": {entry}}}}}"#);
        fs::write(self.path("auth.json"), file).unwrap();
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_larder-snapshotter"));
        command.args(arguments).current_dir(self.scratch.path());
        command
    }

    /// Runs a command to its end and keeps what it says.
    pub(crate) fn run(&mut self, arguments: &[&str]) {
        let output = self.command(arguments).output().unwrap();
        for bytes in [output.stdout, output.stderr] {
            self.said.push(String::from_utf8_lossy(&bytes).into_owned());
        }
    }

    /// Runs several at a time to their ends: most of what they do is to wait before they try again.
    pub(crate) fn run_together(&mut self, commands: &[&[&str]]) {
        let mut running = Vec::new();
        for arguments in commands {
            let mut command = self.command(arguments);
            let command = command.stdin(Stdio::null()).stdout(Stdio::piped());
            running.push(command.stderr(Stdio::piped()).spawn().unwrap());
        }
        for one in running {
            let output = one.wait_with_output().unwrap();
            for bytes in [output.stdout, output.stderr] {
                self.said.push(String::from_utf8_lossy(&bytes).into_owned());
            }
        }
    }

    pub(crate) async fn start(&mut self) {
        let log = fs::File::create(self.path("daemon.log")).unwrap();
        let (config, root) = (self.path("config.toml"), self.path("root"));
        let socket = self.path("s.sock");
        let words = [
            "run",
            "--config",
            text(&config),
            "--root",
            text(&root),
            "--address",
            text(&socket),
        ];
        // The worst umask there is: what is closed is closed by its own mode.
        let mut shell = Command::new("sh");
        shell.args(["-c", "umask 000; exec \"$@\"", "sh"]);
        shell
            .arg(env!("CARGO_BIN_EXE_larder-snapshotter"))
            .args(words);
        let daemon = shell.stderr(log.try_clone().unwrap()).stdout(log).spawn();
        self.daemon = Some(daemon.unwrap());
        for _ in 0..3_000 {
            if tokio::net::UnixStream::connect(&socket).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the daemon does not start: {}", self.log());
    }

    /// Starts a containerd that has the daemon as its snapshotter, for whoever asks it at [`World::address`].
    pub(crate) async fn start_containerd(&mut self) {
        let (folder, socket) = (self.path("containerd"), self.address());
        fs::create_dir(&folder).unwrap();
        let config = format!(
            "version = 2\nroot = \"{folder}/root\"\nstate = \"{folder}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\n  address = \"{socket}\"\n\
             [ttrpc]\n  address = \"{socket}.ttrpc\"\n[debug]\n  level = \"trace\"\n\
             [proxy_plugins.larder]\n  type = \"snapshot\"\n  address = \"{}\"\n",
            self.path("s.sock").display(),
            folder = folder.display(),
            socket = socket.display(),
        );
        fs::write(folder.join("config.toml"), config).unwrap();
        let log = fs::File::create(folder.join("log")).unwrap();
        let mut command = Command::new("containerd");
        command.arg("-c").arg(folder.join("config.toml"));
        let containerd = command.stdout(log.try_clone().unwrap()).stderr(log).spawn();
        self.containerd = Some(containerd.expect("containerd is installed"));
        for _ in 0..3_000 {
            if tokio::net::UnixStream::connect(&socket).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("containerd does not start");
    }

    /// Where containerd listens.
    pub(crate) fn address(&self) -> PathBuf {
        self.path("c.sock")
    }

    /// Makes an image of the first two layers; its reference.
    pub(crate) fn push_image(&self, tag: &str) -> String {
        let layers = &self.layers[..2];
        let descriptor = |layer: &LayerFixture| {
            json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+zstd",
                "digest": layer.digest.to_string(),
                "size": layer.blob.len(),
                "annotations": {
                    annotation::INDEX: layer.index.to_string(),
                    annotation::LAYER: layer.digest.to_string(),
                },
            })
        };
        let diff_ids = layers
            .iter()
            .map(|layer| Digest::of(&layer.tar).to_string());
        let config = json!({
            "os": "linux",
            "architecture": "amd64",
            "rootfs": {"type": "layers", "diff_ids": diff_ids.collect::<Vec<_>>()},
        })
        .to_string();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": Digest::of(config.as_bytes()).to_string(),
                "size": config.len(),
            },
            "layers": layers.iter().map(descriptor).collect::<Vec<_>>(),
        });
        self.registry.push_blob(config);
        let bytes = manifest.to_string();
        self.registry
            .push_manifest("team/app", tag, MANIFEST, bytes);
        self.registry.reference("team/app", tag)
    }

    /// Process id of the daemon.
    pub(crate) fn pid(&self) -> u32 {
        self.daemon.as_ref().unwrap().id()
    }

    /// Ends the daemon in order.
    pub(crate) fn stop(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        let pid = nix::unistd::Pid::from_raw(daemon.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(daemon.wait().unwrap().success(), "{}", self.log());
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("daemon.log")).unwrap_or_default()
    }

    pub(crate) fn snapshots(&self) -> SnapshotsClient<tonic::transport::Channel> {
        SnapshotsClient::new(Connector::channel(self.path("s.sock")))
    }

    /// Prepares layer `number` as containerd does; whether it is loaded lazily.
    pub(crate) async fn prepare(&mut self, number: usize) -> bool {
        let layer = &self.layers[number];
        let chain = Digest::of(&layer.tar).to_string();
        let labels = HashMap::from([
            (REF_LABEL.to_owned(), chain.clone()),
            (annotation::INDEX.to_owned(), layer.index.to_string()),
            (annotation::LAYER.to_owned(), layer.digest.to_string()),
            (
                "containerd.io/snapshot/cri.image-ref".to_owned(),
                self.registry.reference("team/app", "1"),
            ),
        ]);
        let request = PrepareSnapshotRequest {
            key: format!("k8s.io/{number}/extract {chain}"),
            labels,
            ..PrepareSnapshotRequest::default()
        };
        let answer = self.snapshots().prepare(request).await;
        self.said.push(format!("{answer:?}"));
        matches!(answer, Err(status) if status.code() == Code::AlreadyExists)
    }

    /// Where the lazily loaded layer `number` is mounted.
    pub(crate) async fn place(&mut self, number: usize) -> PathBuf {
        let chain = Digest::of(&self.layers[number].tar).to_string();
        let request = ListSnapshotsRequest::default();
        let mut pages = self.snapshots().list(request).await.unwrap().into_inner();
        while let Some(page) = pages.message().await.unwrap() {
            self.said.push(format!("{page:?}"));
            for info in page.info {
                if info.labels.get(REF_LABEL) == Some(&chain) {
                    let id = info.name.split('/').nth(1).unwrap().to_owned();
                    return self.path("root/snapshots").join(id).join("fs");
                }
            }
        }
        panic!("layer {number} is not listed");
    }

    /// Reads what was not read before; the error, if there is one, is the kernel's.
    pub(crate) async fn read(&mut self, number: usize, file: &str) -> Option<i32> {
        let path = self.place(number).await.join(file);
        let read = tokio::task::spawn_blocking(move || fs::read(path));
        read.await
            .unwrap()
            .err()
            .and_then(|error| error.raw_os_error())
    }

    /// What processes started here show to everybody.
    pub(crate) fn command_lines(&mut self) {
        let mut daemons = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains("larder-snapshotter") {
                daemons.push(line);
            }
        }
        assert!(!daemons.is_empty());
        self.said.append(&mut daemons);
    }

    /// Where a secret was found, in words.
    pub(crate) fn found(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut look = |place: &str, text: &str| {
            for secret in SECRETS {
                if let Some(at) = text.find(secret) {
                    let from = text.floor_char_boundary(at.saturating_sub(200));
                    let to = text.ceil_char_boundary((at + 60).min(text.len()));
                    found.push(format!("{secret} in {place}: …{}…", &text[from..to]));
                }
            }
        };
        look("the daemon's log", &self.log());
        for said in &self.said {
            look("what was said", said);
        }
        let kept = ["root", "containerd"].map(|name| self.path(name));
        let kept = kept.iter().filter(|directory| directory.exists());
        for file in kept.flat_map(|directory| files(directory)) {
            // Bytes of the image are the image's.
            if file.file_name().is_some_and(|name| name != "device") {
                let bytes = fs::read(&file).unwrap_or_default();
                look(
                    &file.display().to_string(),
                    &String::from_utf8_lossy(&bytes),
                );
            }
        }
        found
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for mut process in [self.containerd.take(), self.daemon.take()]
            .into_iter()
            .flatten()
        {
            let _ = process.kill();
            let _ = process.wait();
        }
        let scratch = self.path("");
        for mount in mounts().unwrap().iter().rev() {
            if mount.target.starts_with(&scratch) {
                let _ = unmount(&mount.target, Unmount::Lazy);
            }
        }
    }
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A layer with a few files of two chunks each.
fn layer(number: usize) -> LayerFixture {
    let noise = |seed: usize| -> Vec<u8> {
        let mut state = u32::try_from(seed).unwrap() * 7919 + 1;
        let next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        };
        std::iter::repeat_with(next).take(100_000).collect()
    };
    let files = (0..8).map(|file| Entry::file(format!("f{file}"), noise(number * 8 + file)));
    LayerFixture::new(files.fold(TarBuilder::new(), TarBuilder::entry).finish())
}

/// The files below a directory that are not mounted there.
pub(crate) fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        if kind.is_file() {
            found.push(path);
        } else if kind.is_dir() && !mounts().unwrap().iter().any(|mount| mount.target == path) {
            found.extend(files(&path));
        }
    }
    found
}
