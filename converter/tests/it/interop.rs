//! Converted images in the hands of other tools.

use std::path::Path;
use std::process::Command;

use larder_test_support::registry::RealRegistry;
use serde_json::Value;

use crate::fixture::*;

/// Runs a tool in the test's directory; `@` in its arguments stands for that directory.
#[track_caller]
fn tool(world: &World, line: &str) -> String {
    let dir = format!("{}/", world.path("").display());
    let mut words = line.split_whitespace().map(|word| word.replace('@', &dir));
    let program = words.next().unwrap();
    run(Command::new(&program)
        .args(words)
        .env("XDG_RUNTIME_DIR", world.path("tmp")))
    .ok()
    .out
}

/// A listing of a tree: everything that must be equal, contents included.
fn tree(root: &Path) -> String {
    // Nobody sets the times of the root and of directories that no entry of a layer describes.
    let script = "tar --sort=name --mtime=@0 --numeric-owner --pax-option=delete=atime,delete=ctime,exthdr.name=x --xattrs --xattrs-include='*' -c . | \
                  sha256sum; find . -printf '%p %y %m %U %G %l\n' | sort; \
                  find . ! -type d -printf '%p %T@ %s %n\n' | sort";
    run(Command::new("sh").args(["-c", script]).current_dir(root))
        .ok()
        .out
}

/// Promise: a real registry takes the converted image; skopeo copies it with its digests; buildah
/// gives it the same ID and the same tree as the original.
#[test]
fn skopeo_and_buildah_take_a_converted_image_for_the_same_image() {
    let world = World::new();
    let (base, change) = (base(), change());
    let layers = [
        world.layer(GZIP, &gzip(&base)),
        world.layer(GZIP, &gzip(&change)),
    ];
    world.tag(&world.image("amd64", &layers, &[&base, &change]));
    let registry = RealRegistry::start();
    let (source, dest) = (
        registry.reference("a/source", "v1"),
        registry.reference("b/dest", "v2"),
    );
    // As Docker pushes it: schema 2.
    tool(
        &world,
        &format!(
            "skopeo copy -q --format v2s2 --dest-tls-verify=false oci:@source:latest docker://{source}"
        ),
    );
    let report = world
        .larder(&format!("convert {source} {dest} --json"))
        .json();
    world
        .larder(&format!("check {dest} --against {source}"))
        .ok();

    // Without --preserve-digests skopeo may put a gzip layer it remembers in the place of a zstd
    // layer with the same contents.
    let copied = registry.reference("c/copied", "v3");
    tool(
        &world,
        &format!(
            "skopeo copy -q --preserve-digests --src-tls-verify=false --dest-tls-verify=false docker://{dest} docker://{copied}"
        ),
    );
    let inspected = tool(
        &world,
        &format!("skopeo inspect --tls-verify=false docker://{copied}"),
    );
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    assert_eq!(inspected["Digest"], report["digest"]);
    world
        .larder(&format!("check {copied} --against {source}"))
        .ok();

    let buildah = "buildah --storage-driver vfs --root @storage --runroot @run";
    let mut seen = Vec::new();
    for image in [&source, &copied] {
        let name = tool(
            &world,
            &format!("{buildah} from --pull-always -q --tls-verify=false docker://{image}"),
        );
        let name = name.trim().to_owned();
        let id = tool(
            &world,
            &format!("{buildah} inspect --format {{{{.FromImageID}}}} {name}"),
        );
        let mounted = tool(&world, &format!("{buildah} mount {name}"));
        seen.push((id, tree(Path::new(mounted.trim()))));
        tool(&world, &format!("{buildah} umount {name}"));
        tool(&world, &format!("{buildah} rm {name}"));
    }
    let id = seen[0].0.trim();
    assert_eq!(report["manifests"][0]["image_id"], format!("sha256:{id}"));
    assert_eq!(seen[0], seen[1]);
}
