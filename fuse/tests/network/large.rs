//! Reads that the kernel makes many requests of, from registries that are slow.
//!
//! One request has one deadline, see `fuse/src/fetch/tests.rs`. Here is what an application sees of it.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use larder_fuse::{DataPlane, DriverChoice, Layer};
use larder_test_support::layer::LayerFixture;
use larder_test_support::noise::noise;
use larder_test_support::on_both_drivers;
use larder_test_support::registry::{Fault, On};
use larder_test_support::tar::{Entry, TarBuilder};

use crate::cell::BUSY;
use crate::log;
use crate::matrix::{Scratch, plane};
use crate::site::{DEADLINE, Site, Way};

/// What is read at once: sixty-four chunks, and thirty-two times what the kernel reads ahead.
const READ_BYTES: usize = 4 << 20;

/// A mounted layer with one file of [`READ_BYTES`].
struct Large {
    site: Site,
    path: PathBuf,
    data: Vec<u8>,
    plane: DataPlane,
    _layer: Layer,
    _scratch: Scratch,
}

impl Large {
    async fn new(driver: DriverChoice) -> Self {
        log::collect();
        let data = noise(4, READ_BYTES);
        let tar = TarBuilder::new()
            .entry(Entry::file("data", &*data))
            .finish();
        let site = Site::new(Way::Plain, LayerFixture::new(tar));
        let scratch = Scratch(tempfile::tempdir().unwrap());
        let plane = plane(scratch.0.path(), driver).await;
        let layer = plane.add_layer(site.spec()).await.unwrap();
        let place = scratch.0.path().join("at");
        std::fs::create_dir(&place).unwrap();
        layer.mount(&place, &[]).await.unwrap();
        Self {
            site,
            path: place.join("data"),
            data,
            plane,
            _layer: layer,
            _scratch: scratch,
        }
    }

    /// What one call of read gives from `at` on to the end, and how long it takes.
    async fn read(&self, at: usize) -> (std::io::Result<usize>, Duration) {
        let (path, expected) = (self.path.clone(), self.data[at..].to_vec());
        let read = tokio::task::spawn_blocking(move || {
            let file = File::open(path).unwrap();
            let mut bytes = vec![0; expected.len()];
            let begun = Instant::now();
            let read = file.read_at(&mut bytes, at as u64);
            let waited = begun.elapsed();
            let came = read.as_ref().map_or(0, |len| *len);
            assert!(bytes[..came] == expected[..came], "WRONG BYTES");
            (read, waited)
        });
        read.await.unwrap()
    }
}

/// Promise: a read of which nothing comes in time fails after one deadline, however many chunks and requests
/// it is, and then at once for a second.
async fn a_large_read_of_which_nothing_comes_fails_after_one_deadline(driver: DriverChoice) {
    let large = Large::new(driver).await;
    let late = Fault::Delay(DEADLINE.mul_f64(0.9));
    large.site.registry.set_fault(late);
    let (read, waited) = large.read(0).await;
    assert_eq!(read.unwrap_err().raw_os_error(), Some(5));
    let told = log::complaints(&large.site.fixture.digest);
    assert!(waited < DEADLINE + BUSY, "{waited:?}: {told:#?}");
    let (again, waited) = large.read(0).await;
    assert_eq!(again.unwrap_err().raw_os_error(), Some(5));
    assert!(waited < DEADLINE / 2, "{waited:?}");
    large.plane.shutdown().await;
}

/// Promise: a read of which some comes in time lasts as long as bytes come, and gives them one deadline after
/// the last ones at most; it goes on where it ended.
async fn a_large_read_gives_what_came(driver: DriverChoice) {
    const LATE: u32 = 4;
    let large = Large::new(driver).await;
    let registry = &large.site.registry;
    let late = DEADLINE / 4;
    registry.fault_times(LATE, On::Blobs, Fault::Delay(late));
    registry.set_fault(Fault::StallBeforeHeaders);
    let (read, waited) = large.read(0).await;
    let mut came = read.unwrap();
    println!("{driver:?}: {came} bytes in {waited:?}");
    assert!(came > 0 && came < READ_BYTES, "{came}");
    assert!(waited < LATE * late + DEADLINE + BUSY, "{waited:?}");
    registry.clear_faults();
    large.site.pass_time();
    let begun = Instant::now();
    while came < READ_BYTES {
        match large.read(came).await {
            // Short again, where the layer's host is still left alone for a moment.
            (Ok(more), _) => {
                assert!(more > 0, "the file ends at {came}");
                came += more;
            }
            (Err(error), _) => assert!(begun.elapsed() < DEADLINE + BUSY, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(came, READ_BYTES);
    large.plane.shutdown().await;
}

on_both_drivers!(
    a_large_read_of_which_nothing_comes_fails_after_one_deadline,
    a_large_read_gives_what_came,
);
