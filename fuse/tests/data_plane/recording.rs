//! What a start reads, recorded and replayed, by the kernel's own requests.

use std::path::Path;
use std::time::Duration;

use larder_fuse::{DriverChoice, Recording, Settling};
use larder_proto::access::Access;
use larder_test_support::layer::LayerFixture;
use larder_test_support::on_both_drivers;
use larder_test_support::tar::{Entry, TarBuilder};

use crate::scene::{Mood, Scene, eventually, noise, read};

/// More than the kernel reads ahead of a device.
const APART: usize = 3 << 20;

/// A layer of three files of several chunks each, `one`, `two` and `three`, far from each other, and what is
/// in them.
fn three() -> (LayerFixture, [Vec<u8>; 3]) {
    let files = [11, 12, 13].map(|seed| noise(seed, 200_000));
    let tar = TarBuilder::new()
        .entry(Entry::file("one", files[0].clone()))
        .entry(Entry::file("between", noise(14, APART)))
        .entry(Entry::file("two", files[1].clone()))
        .entry(Entry::file("behind", noise(15, APART)))
        .entry(Entry::file("three", files[2].clone()));
    (LayerFixture::new(tar.finish()), files)
}

/// The rows of the chunks that hold `content`.
fn rows(layer: &LayerFixture, content: &[u8]) -> Vec<u32> {
    let mut windows = layer.tar.windows(64);
    let begin = windows.position(|bytes| bytes == &content[..64]).unwrap() as u64;
    let end = begin + content.len() as u64;
    let rows = layer.chunks.iter().enumerate();
    let rows = rows.filter(|(_, chunk)| chunk.offset < end && begin < chunk.end());
    rows.map(|(row, _)| u32::try_from(row).unwrap()).collect()
}

fn reads(recording: Recording) -> Vec<Access> {
    let [one] = &recording.finish()[..] else {
        panic!("not one layer");
    };
    one.layer.reads.clone()
}

/// The moments at which `rows` were first read, and whether all of them were, each once.
fn times(reads: &[Access], rows: &[u32]) -> Option<Vec<u64>> {
    let of = reads.iter().filter(|read| rows.contains(&read.chunk));
    let times: Vec<_> = of.map(|read| read.micros).collect();
    (times.len() == rows.len()).then_some(times)
}

/// Whether nothing of `rows` was read.
fn are_unread(reads: &[Access], rows: &[u32]) -> bool {
    reads.iter().all(|read| !rows.contains(&read.chunk))
}

/// Promise: a recording has the chunks that were read, each once, in the order of their first reads, and what
/// the kernel reads ahead beside them; whether they were in the store before does not matter.
async fn what_is_read_is_recorded_in_order(driver: DriverChoice) {
    let (fixture, [one, two, three]) = three();
    let [one, two, three] = [one, two, three].map(|content| rows(&fixture, &content));
    let scene = Scene::new(driver).await;
    let mounted = scene.mounted(&fixture, "at").await;
    let recording = Recording::begin(std::slice::from_ref(&mounted.layer));
    read(mounted.target.join("two")).await.unwrap();
    read(mounted.target.join("one")).await.unwrap();
    read(mounted.target.join("two")).await.unwrap();
    let recorded = reads(recording);
    let (first, then) = (times(&recorded, &two), times(&recorded, &one));
    let (first, then) = (first.unwrap(), then.unwrap());
    assert!(first.iter().max() <= then.iter().min(), "{recorded:?}");
    assert!(are_unread(&recorded, &three), "{recorded:?}");
    assert!(recorded.is_sorted_by_key(|read| read.micros));

    mounted.layer.fetch_all().await.unwrap();
    let again = Recording::begin(std::slice::from_ref(&mounted.layer));
    read(mounted.target.join("three")).await.unwrap();
    let hits = reads(again);
    assert!(times(&hits, &three).is_some(), "they were in the store");
    assert!(are_unread(&hits, &one), "{hits:?}");
}

/// Promise: what was recorded of one start is fetched before the next one reads it, which then needs no
/// source; what is not in the layer is passed over.
async fn what_was_recorded_is_there_before_it_is_read(driver: DriverChoice) {
    let (fixture, [_, two, _]) = three();
    let first = Scene::new(driver).await;
    let mounted = first.mounted(&fixture, "at").await;
    let recording = Recording::begin(std::slice::from_ref(&mounted.layer));
    read(mounted.target.join("two")).await.unwrap();
    let mut recorded = reads(recording);
    drop((mounted, first));
    recorded.push(Access {
        micros: 0,
        chunk: u32::MAX,
    });

    let scene = Scene::with(driver, |config| config.completion.enabled = false).await;
    let next = scene.mounted(&fixture, "at").await;
    scene.plane().replay(&next.layer, &recorded);
    let wanted = recorded
        .iter()
        .filter_map(|read| fixture.chunks.get(read.chunk as usize));
    let wanted: u64 = wanted.map(|chunk| u64::from(chunk.len)).sum();
    eventually("the recorded chunks are there", || {
        next.layer.status().bytes_present >= wanted
    })
    .await;
    next.source.set(Mood::Stalls);
    assert_eq!(read(next.target.join("two")).await.unwrap(), two);
    read(next.target.join("one")).await.unwrap_err();
}

/// Promise: a recording does not keep a layer that is removed meanwhile, and is over when nothing is read.
async fn a_recording_keeps_nothing(driver: DriverChoice) {
    let (fixture, [one, ..]) = three();
    let scene = Scene::new(driver).await;
    let mounted = scene.mounted(&fixture, "at").await;
    let recording = Recording::begin(std::slice::from_ref(&mounted.layer));
    read(mounted.target.join("one")).await.unwrap();
    let settling = Settling {
        pause: Duration::from_millis(300),
        ..Settling::default()
    };
    recording.settled(&settling).await;
    scene.plane().unmount(&mounted.target).await.unwrap();
    scene
        .plane()
        .remove_layer(&mounted.layer.id())
        .await
        .unwrap();
    assert!(scene.plane().layers().is_empty());
    let place = scene.scratch.path().join("root/store");
    let hex = mounted.layer.id().0.hex();
    drop(mounted);
    eventually("its files are gone", || !is_there(&place, &hex)).await;
    assert!(times(&reads(recording), &rows(&fixture, &one)).is_some());
}

fn is_there(store: &Path, hex: &str) -> bool {
    let mut names = std::fs::read_dir(store).unwrap();
    names.any(|entry| entry.unwrap().file_name().to_string_lossy().contains(hex))
}

on_both_drivers!(
    what_is_read_is_recorded_in_order,
    what_was_recorded_is_there_before_it_is_read,
    a_recording_keeps_nothing,
);
