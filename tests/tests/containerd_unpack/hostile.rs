//! Layers made to harm: what containerd unpacks of them is what a node shows, and nothing outside of
//! either is touched.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use larder_fuse::mount::{Unmount, mounts, unmount};
use larder_fuse::{DataPlane, DataPlaneConfig, DriverChoice, LayerSpec, RegistrySource};
use larder_proto::scan::ScanError;
use larder_registry::{Client, ClientOptions};
use larder_test_support::hostile::{Answer, Canary, HostileTar, tars};
use larder_test_support::layer::LayerFixture;
use larder_test_support::on_both_drivers;
use larder_test_support::registry::FakeRegistry;

use crate::{Case, Expected, difference, problems, scan};

/// Longest time any of the tars may take a reader in a debug build on a busy machine. None of them is
/// larger than 60 MB; what has no bound would take minutes.
const SCAN_MAX: Duration = Duration::from_secs(20);

/// Promise: every hostile tar is refused with a reason that names the entry, or shows the tree that
/// containerd unpacks; neither touches anything outside.
#[test]
fn hostile_tars_are_refused_or_give_the_tree_that_containerd_unpacks() {
    let scratch = tempfile::tempdir().expect("a temporary folder");
    let canary = Canary::new(scratch.path()).expect("a canary");
    let table = tars(canary.path());
    assert!(table.len() >= 60, "{} hostile tars", table.len());
    let cases: Vec<Case> = table.iter().map(case).collect();
    let mut problems = problems(&cases);
    problems.extend(table.iter().filter_map(verdict));
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert_eq!(canary.touched(), [""; 0]);
}

fn case(hostile: &HostileTar) -> Case {
    let expected = match hostile.answer {
        Answer::SameTree => Expected::SameTree,
        Answer::Broken(_) | Answer::Copied(_) => Expected::BothRefuse,
        Answer::BrokenToUs(_) | Answer::CopiedByUs(_) => Expected::OnlyWeRefuse,
    };
    Case {
        name: hostile.name.to_owned(),
        tar: hostile.tar.clone(),
        expected,
    }
}

/// What is wrong with our answer, if anything is.
fn verdict(hostile: &HostileTar) -> Option<String> {
    let begun = Instant::now();
    let answer = scan(&hostile.tar);
    let took = begun.elapsed();
    let right = match (&answer, hostile.answer) {
        (Ok(_), Answer::SameTree) => true,
        (
            Err(error @ ScanError::Malformed { .. }),
            Answer::Broken(words) | Answer::BrokenToUs(words),
        )
        | (
            Err(error @ ScanError::Unrepresentable { .. }),
            Answer::Copied(words) | Answer::CopiedByUs(words),
        ) => is_clear(&error.to_string(), words),
        _ => false,
    };
    let told = answer.map(drop).map_err(|error| error.to_string());
    if took > SCAN_MAX {
        return Some(format!("{} took {took:?}: {told:?}", hostile.name));
    }
    let expected = hostile.answer;
    (!right).then(|| format!("{}: {told:?} instead of {expected:?}", hostile.name))
}

/// One line that can be printed, names an entry, and is no essay.
fn is_clear(told: &str, words: &str) -> bool {
    told.contains(words)
        && told.contains("entry")
        && told.len() < 1_000
        && !told.chars().any(char::is_control)
}

/// Promise: what was accepted of the hostile tars is shown by a node as containerd unpacks it, byte
/// for byte and attribute for attribute, and mounting and reading it touches nothing outside.
async fn hostile_tars_are_mounted_as_they_are_unpacked(driver: DriverChoice) {
    let scratch = tempfile::tempdir().expect("a temporary folder");
    let canary = Canary::new(scratch.path()).expect("a canary");
    let mut config = DataPlaneConfig::new(scratch.path().join("root"));
    config.driver = driver;
    let plane = DataPlane::start(config).await.expect("a data plane");
    let mut found = Vec::new();
    for hostile in tars(canary.path()) {
        if !hostile.answer.is_accepted() {
            continue;
        }
        let at = scratch.path().join(hostile.name);
        std::fs::create_dir(&at).expect("a mount point");
        if let Err(problem) = mounted(&plane, &hostile, &at).await {
            found.push(format!("{}: {problem}", hostile.name));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert_eq!(canary.touched(), [""; 0]);
    drop(plane);
    for mount in mounts().expect("the mounts").iter().rev() {
        if mount.target.starts_with(scratch.path()) {
            let _ = unmount(&mount.target, Unmount::Lazy);
        }
    }
}

on_both_drivers!(hostile_tars_are_mounted_as_they_are_unpacked);

/// Mounts a layer from a registry, and says how it differs from its tar.
async fn mounted(plane: &DataPlane, hostile: &HostileTar, at: &Path) -> Result<(), String> {
    let fixture = LayerFixture::new(hostile.tar.clone());
    let registry = FakeRegistry::start().await;
    registry.push_blob(fixture.blob.clone());
    let reference = registry.reference("team/app", "1");
    let reference = reference.parse().expect("a name");
    let client = Client::new(ClientOptions::default()).expect("a client");
    let source = RegistrySource::new(client.repository(&reference), fixture.digest);
    let spec = LayerSpec {
        blob: fixture.digest,
        index: fixture.index,
        sources: vec![Arc::new(source)],
        elsewhere: None,
    };
    let layer = plane.add_layer(spec).await;
    let layer = layer.map_err(|error| error.to_string())?;
    layer
        .mount(at, &[])
        .await
        .map_err(|error| error.to_string())?;
    let (tar, at) = (hostile.tar.clone(), at.to_owned());
    let compared = tokio::task::spawn_blocking(move || {
        let scanned = scan(&tar).map_err(|error| error.to_string())?;
        difference::between(&scanned, &tar, &at).map_or(Ok(()), Err)
    });
    compared.await.map_err(|error| error.to_string())?
}
