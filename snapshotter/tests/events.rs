//! Events through a real containerd, as `ctr events` shows them.
#![expect(clippy::unwrap_used, reason = "a step that fails fails its test")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use larder_fuse::{LayerId, Observer};
use larder_proto::digest::Digest;
use larder_snapshotter::containerd::Containerd;
use larder_snapshotter::reporter::{QUARANTINE_TOPIC, Reporter};
use larder_snapshotter::store::{Content, LayerFacts, Owner, Store};

/// A process that ends with its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A containerd in a folder of its own.
fn containerd(folder: &std::path::Path) -> Running {
    let path = folder.display();
    let config = format!(
        "version = 2\nroot = \"{path}/root\"\nstate = \"{path}/state\"\n\
         disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\n  address = \"{path}/c.sock\"\n\
         [ttrpc]\n  address = \"{path}/c.sock.ttrpc\"\n"
    );
    let file = folder.join("config.toml");
    std::fs::write(&file, config).unwrap();
    let mut command = Command::new("containerd");
    let command = command.arg("-c").arg(file).stderr(Stdio::null());
    let running = Running(command.spawn().expect("containerd is installed"));
    let begun = Instant::now();
    while std::os::unix::net::UnixStream::connect(folder.join("c.sock")).is_err() {
        assert!(begun.elapsed() < Duration::from_mins(1), "no answer");
        std::thread::sleep(Duration::from_millis(20));
    }
    running
}

/// Promise: whoever subscribes to containerd's events hears of a quarantine in the namespace of the
/// image, by the image's name, with layer, index and reason.
#[tokio::test(flavor = "multi_thread")]
async fn a_quarantine_reaches_who_subscribes_to_containerd() {
    let dir = tempfile::tempdir().unwrap();
    let _containerd = containerd(dir.path());
    let socket = dir.path().join("c.sock");
    let mut ctr = Command::new("ctr");
    let ctr = ctr.arg("-a").arg(&socket).arg("events");
    let ctr = ctr.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut listening = Running(ctr.spawn().unwrap());
    let lines = BufReader::new(listening.0.stdout.take().unwrap()).lines();
    let (heard, hear) = mpsc::channel();
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            drop(heard.send(line));
        }
    });

    let store = Arc::new(Store::open(&dir.path().join("larder")).unwrap());
    let (index, blob) = (Digest::of(b"index"), Digest::of(b"blob"));
    let id = store.reserve().unwrap();
    let image = ("containerd.io/snapshot/cri.image-ref", "r.test/app:1");
    let labels = BTreeMap::from([(image.0.to_owned(), image.1.to_owned())]);
    let content = Content::Layer {
        index: index.to_string(),
        owner: Owner::ROOT,
    };
    let facts = LayerFacts {
        blob: blob.to_string(),
        location: String::new(),
        origins: Vec::new(),
        namespace: "k8s.io".into(),
        implied: Vec::new(),
    };
    let name = format!("k8s.io/{id}/lazy chain");
    store.adopt(id, &name, "", labels, content, &facts).unwrap();
    let reporter = Reporter::new(Containerd::new(socket));
    reporter.know(store);

    // Published again until the subscription stands.
    let begun = Instant::now();
    let line = loop {
        reporter.quarantined(LayerId(index), blob, "bin/su has another mode");
        match hear.recv_timeout(Duration::from_millis(300)) {
            Ok(line) if line.contains(QUARANTINE_TOPIC) => break line,
            _ => assert!(begun.elapsed() < Duration::from_mins(2), "nothing heard"),
        }
    };
    assert!(line.contains(" k8s.io /larder/quarantine "), "{line}");
    let event = &line[line.find('{').unwrap()..];
    let event: serde_json::Value = serde_json::from_str(event).unwrap();
    assert_eq!(event["name"], "r.test/app:1", "{line}");
    let labels = &event["labels"];
    assert_eq!(labels["layer"], blob.to_string());
    assert_eq!(labels["index"], index.to_string());
    assert_eq!(labels["reason"], "bin/su has another mode");
}
