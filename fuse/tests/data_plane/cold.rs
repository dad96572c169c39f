//! Layers that are not there yet, through EROFS: exactly what is asked for is fetched, until the layer is proven.

use std::path::Path;

use larder_fuse::{ChainLayer, DriverChoice, Trust};
use larder_test_support::layer::LayerFixture;
use larder_test_support::on_erofs;
use larder_test_support::tar::{Entry, TarBuilder};

use crate::scene::{Scene, eventually, noise, read, read_cold};

/// Longer than what is packed with others, and no multiple of a page: chunks that begin and end within pages.
const LEN: usize = 70_001;

/// The options of each EROFS file system below `root`, as the kernel tells them.
fn options(root: &Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let ours = table.lines().filter_map(|line| {
        let (place, kind) = line.split_once(" - erofs ")?;
        let target = place.split(' ').nth(4)?;
        Path::new(target).starts_with(root).then(|| kind.to_owned())
    });
    ours.collect()
}

fn is_direct(options: &[String]) -> bool {
    options.iter().any(|line| line.contains("directio"))
}

/// Promise: who reads a file gets its chunks and no neighbour's, though they share a page of the device. Through the
/// page cache the neighbours had to come, too.
async fn a_file_brings_no_chunk_of_its_neighbours() {
    let mut tar = TarBuilder::new();
    for number in 0..8 {
        tar = tar.entry(Entry::file(format!("f{number}"), noise(number, LEN)));
    }
    let fixture = LayerFixture::new(tar.finish());
    let scene = Scene::new(DriverChoice::Erofs).await;
    let mounted = scene.mounted(&fixture, "at").await;
    let before = mounted.source.requests().len();
    for number in [3, 5] {
        let name = format!("f{number}");
        let found = read(mounted.target.join(name)).await.unwrap();
        assert!(found == noise(number, LEN));
    }
    let asked = mounted.source.requests().split_off(before);
    let of_file = |number: u64| {
        let content = noise(number, LEN);
        let mut windows = fixture.tar.chunks(512).enumerate();
        let begins = windows.find(|(_, block)| **block == content[..512]);
        let offset = begins.unwrap().0 as u64 * 512;
        let row = fixture.chunks.iter().find(|chunk| chunk.offset == offset);
        row.unwrap().stored_range()
    };
    assert_eq!(asked, [of_file(3), of_file(5)]);
}

/// Promise: once a layer is proven, who has it open already reads it through the page cache, and goes on reading.
async fn what_is_proven_is_read_through_the_page_cache_by_who_has_it_open() {
    let scene = Scene::new(DriverChoice::Erofs).await;
    let content = noise(1, 900_000);
    let tar = TarBuilder::new().entry(Entry::file("data", content.clone()));
    let mounted = scene.mounted(&LayerFixture::new(tar.finish()), "at").await;
    let root = scene.scratch.path();
    assert!(is_direct(&options(root)), "{:?}", options(root));
    let data = mounted.target.join("data");
    let reader = {
        let data = data.clone();
        // Many reads while the change is made.
        std::thread::spawn(move || {
            (0..200)
                .map(|_| read_cold(&data).unwrap())
                .all(|found| found == content)
        })
    };
    mounted.layer.fetch_all().await.unwrap();
    assert_eq!(mounted.layer.prove().await, Trust::Proven);
    eventually("it is buffered", || {
        let found = options(root);
        !found.is_empty() && !is_direct(&found)
    })
    .await;
    let was_right = tokio::task::spawn_blocking(|| reader.join().unwrap()).await;
    assert!(was_right.unwrap());
}

/// Promise: a chain mounted as one is read past the page cache until the last of its layers is proven.
async fn a_merged_chain_is_read_directly_until_its_last_layer_is_proven() {
    let scene = Scene::new(DriverChoice::Erofs).await;
    let mut all = Vec::new();
    for number in 0..2 {
        let name = format!("f{number}");
        let tar = TarBuilder::new().entry(Entry::file(&name, noise(number, LEN)));
        let at = format!("at-{number}");
        all.push(scene.mounted(&LayerFixture::new(tar.finish()), &at).await);
    }
    let layer = |number: usize| ChainLayer {
        layer: all[number].layer.id(),
        implied: Vec::new(),
    };
    let chain = vec![layer(0), layer(1)];
    let place = scene.plane().mount_merged(chain).await.unwrap();
    for one in &all {
        assert!(is_direct(&options(&place)));
        one.layer.fetch_all().await.unwrap();
        assert_eq!(one.layer.prove().await, Trust::Proven);
    }
    eventually("it is buffered", || !is_direct(&options(&place))).await;
    assert_eq!(options(&place).len(), 1);
    let found = read(place.join("f1")).await.unwrap();
    assert!(found == noise(1, LEN));
}

on_erofs!(
    a_file_brings_no_chunk_of_its_neighbours,
    a_merged_chain_is_read_directly_until_its_last_layer_is_proven,
    what_is_proven_is_read_through_the_page_cache_by_who_has_it_open,
);
