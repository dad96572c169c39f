//! What a container reads is what the tar holds, and it is fetched once.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::Ordering;

use larder_fuse::{DataPlane, Driver, DriverChoice, ImpliedDirectory, StartError};
use larder_test_support::kernel::EROFS_ON_FILES;
use larder_test_support::layer::LayerFixture;
use larder_test_support::on_both_drivers;
use larder_test_support::tar::{Entry, TarBuilder};

use crate::scene::{Scene, clean_up, config, layer_of, noise, odd_layer, read};

/// Promise: both drivers show every byte and attribute of the tar.
async fn both_drivers_show_bytes_and_attributes_of_the_tar(driver: DriverChoice) {
    let fixture = odd_layer();
    let scene = Scene::new(driver).await;
    let mounted = scene.mounted(&fixture, "at").await;
    let target = mounted.target.clone();
    tokio::task::spawn_blocking(move || check_odd_layer(&target))
        .await
        .unwrap();
    scene.plane().unmount(&mounted.target).await.unwrap();
    assert_eq!(std::fs::read_dir(&mounted.target).unwrap().count(), 0);
    scene
        .plane()
        .remove_layer(&mounted.layer.id())
        .await
        .unwrap();
    assert!(scene.plane().layers().is_empty());
}

fn check_odd_layer(at: &Path) {
    let stat = |name: &str| std::fs::symlink_metadata(at.join(name)).unwrap();
    assert_eq!(
        std::fs::read(at.join("etc/passwd")).unwrap(),
        b"root:x:0:0\n"
    );
    assert_eq!(std::fs::read(at.join("etc/empty")).unwrap(), b"");
    assert_eq!(
        std::fs::read(at.join("bin/big")).unwrap(),
        noise(7, 700_001)
    );
    assert_eq!(
        std::fs::read_link(at.join("bin/sh")).unwrap(),
        Path::new("../etc/passwd")
    );
    let big = stat("bin/big");
    assert_eq!((big.mode(), big.uid(), big.gid()), (0o104_755, 1000, 1000));
    assert_eq!((big.nlink(), big.ino()), (2, stat("bin/link").ino()));
    let etc = stat("etc");
    assert_eq!(
        (etc.mode(), etc.uid(), etc.gid(), etc.mtime()),
        (0o40_751, 1, 2, 1_000_000)
    );
    assert_eq!(stat("dev/null").rdev(), rustix::fs::makedev(1, 3));
    assert!(stat("run/pipe").file_type().is_fifo());
    let whiteout = stat("etc/gone");
    assert!(whiteout.file_type().is_char_device());
    assert_eq!(whiteout.rdev(), 0);
    assert_eq!(xattr(&at.join("opt"), "trusted.overlay.opaque"), b"y");
    assert_eq!(xattr(&at.join("etc/passwd"), "user.colour"), b"red");
    let mut names: Vec<_> = std::fs::read_dir(at.join("bin"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["big", "link", "sh"]);
    assert!(std::fs::symlink_metadata(at.join("etc/nothing")).is_err());
    assert!(std::fs::write(at.join("etc/new"), "").is_err());
}

fn xattr(path: &Path, name: &str) -> Vec<u8> {
    let mut value = vec![0; 100];
    let len = rustix::fs::getxattr(path, name, &mut value[..]).unwrap();
    value.truncate(len);
    value
}

/// Promise: EROFS is chosen where the kernel does it well, which the self-test says; the report says why.
#[tokio::test(flavor = "multi_thread")]
async fn the_driver_is_chosen_with_a_reason() {
    let scene = Scene::new(DriverChoice::Auto).await;
    let report = scene.plane().driver();
    let is_tested = report.reason.contains("self-test");
    if EROFS_ON_FILES {
        assert!(is_tested, "{report}");
    } else {
        assert_eq!(report.driver, Driver::Fuse, "{report}");
        assert!(report.reason.contains("older than 6.12"), "{report}");
    }
}

/// Promise: asked for, EROFS is the driver, or the data plane does not start and says why.
#[tokio::test(flavor = "multi_thread")]
async fn erofs_that_was_asked_for_is_had_or_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let config = config(&scratch.path().join("root"), DriverChoice::Erofs, |_| {});
    match DataPlane::start(config).await {
        Ok(plane) => {
            let report = plane.driver().clone();
            plane.shutdown().await;
            assert!(EROFS_ON_FILES && report.driver == Driver::Erofs, "{report}");
            assert!(report.reason.contains("self-test"), "{report}");
        }
        Err(refused) => {
            assert!(matches!(refused, StartError::Driver(_)), "{refused}");
            assert!(!EROFS_ON_FILES || refused.to_string().contains("self-test"));
        }
    }
    clean_up(scratch.path());
}

/// Promise: however many readers ask, each chunk is fetched once; bytes on the wire ≤ 1.02 ×.
async fn a_thousand_readers_fetch_each_chunk_once(driver: DriverChoice) {
    let data = noise(3, 3_000_000);
    let fixture = LayerFixture::new(TarBuilder::new().entry(Entry::file("data", &data)).finish());
    let scene = Scene::new(driver).await;
    let mounted = scene.mounted(&fixture, "at").await;
    let before = mounted.source.bytes.load(Ordering::Relaxed);
    let threads: Vec<_> = (0..1000_usize)
        .map(|i| {
            let path = mounted.target.join("data");
            std::thread::spawn(move || {
                use std::os::unix::fs::FileExt;
                let file = std::fs::File::open(path).unwrap();
                let mut piece = vec![0; 4096];
                let offset = i * 7919 * 37 % (3_000_000 - 4096);
                file.read_exact_at(&mut piece, offset as u64).unwrap();
                (offset, piece)
            })
        })
        .collect();
    let joined = tokio::task::spawn_blocking(move || {
        threads
            .into_iter()
            .map(|t| t.join().unwrap())
            .collect::<Vec<_>>()
    });
    for (offset, piece) in joined.await.unwrap() {
        assert_eq!(piece, data[offset..offset + 4096]);
    }
    let fetched = mounted.source.bytes.load(Ordering::Relaxed) - before;
    let unique: u64 = fixture.chunks.iter().map(|c| u64::from(c.stored_len)).sum();
    assert!(
        fetched * 100 <= unique * 102,
        "{fetched} bytes for {unique}"
    );
}

/// Promise: implied directories take the attributes of the parent, in both drivers.
async fn implied_directories_take_the_attributes_they_are_given(driver: DriverChoice) {
    let fixture = odd_layer();
    let scene = Scene::new(driver).await;
    let mounted = scene.mounted(&fixture, "plain").await;
    assert!(mounted.layer.implied().contains(&b"bin".to_vec()));
    let patch = [ImpliedDirectory {
        path: b"bin".to_vec(),
        mode: 0o2710,
        uid: 70_000,
        gid: 5,
        xattrs: vec![(b"user.from".to_vec(), b"parent".to_vec())],
    }];
    let target = scene.directory("patched");
    mounted.layer.mount(&target, &patch).await.unwrap();
    assert_eq!(
        read(target.join("etc/passwd")).await.unwrap(),
        b"root:x:0:0\n"
    );
    let bin = std::fs::metadata(target.join("bin")).unwrap();
    assert_eq!((bin.mode(), bin.uid(), bin.gid()), (0o42_710, 70_000, 5));
    assert_eq!(xattr(&target.join("bin"), "user.from"), b"parent");
    let plain = std::fs::metadata(mounted.target.join("bin")).unwrap();
    assert_eq!((plain.mode(), plain.uid()), (0o40_755, 0));
    let attributes = mounted.layer.attributes(b"etc/passwd").unwrap();
    assert_eq!((attributes.mode, attributes.xattrs.len()), (0o640, 1));
}

/// Promise: the FUSE driver tells the kernel once that a layer has no extended attributes, and
/// shows those of layers that have some.
#[tokio::test(flavor = "multi_thread")]
async fn the_kernel_learns_that_a_layer_has_no_extended_attributes() {
    let scene = Scene::new(DriverChoice::Fuse).await;
    let plain = scene.mounted(&layer_of(b"plain"), "plain").await;
    let with_some = scene.mounted(&odd_layer(), "with some").await;
    let (plain, with_some) = (plain.target.join("data"), with_some.target.clone());
    tokio::task::spawn_blocking(move || {
        let mut value = [0; 16];
        let asked = rustix::fs::getxattr(&plain, "user.colour", &mut value[..]);
        assert_eq!(asked, Err(rustix::io::Errno::OPNOTSUPP));
        // Programs that list first see what they see elsewhere.
        assert_eq!(rustix::fs::listxattr(&plain, &mut value[..]), Ok(0));
        let path = with_some.join("etc/passwd");
        assert_eq!(xattr(&path, "user.colour"), b"red");
        let asked = rustix::fs::getxattr(&path, "user.absent", &mut value[..]);
        assert_eq!(asked, Err(rustix::io::Errno::NODATA));
    })
    .await
    .unwrap();
}

/// Promise: files read ahead are the files, whole and unmixed, whatever their sizes.
#[tokio::test(flavor = "multi_thread")]
async fn small_files_read_ahead_have_their_own_bytes() {
    let sizes = [
        1_usize, 511, 512, 4095, 4096, 4097, 65_536, 131_072, 131_073,
    ];
    let content = move |at: usize| noise(at as u64 + 1, sizes[at % sizes.len()]);
    let mut tar = TarBuilder::new();
    for at in 0..90 {
        let name = format!("d{}/f{:02}", at / 30, at % 30);
        tar = tar.entry(Entry::file(&name, content(at)));
    }
    let fixture = LayerFixture::new(tar.finish());
    let scene = Scene::new(DriverChoice::Fuse).await;
    let mounted = scene.mounted(&fixture, "at").await;
    mounted.layer.fetch_all().await.unwrap();
    let at = mounted.target.clone();
    tokio::task::spawn_blocking(move || {
        for directory in 0..3 {
            let path = at.join(format!("d{directory}"));
            let mut names: Vec<_> = std::fs::read_dir(&path)
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            names.sort();
            assert_eq!(names.len(), 30);
            for (number, name) in names.iter().enumerate() {
                let bytes = std::fs::read(path.join(name)).unwrap();
                assert!(
                    bytes == content(directory * 30 + number),
                    "{directory}/{number}"
                );
            }
        }
    })
    .await
    .unwrap();
}

/// Promise: a name of more than 255 bytes is too long, as on every other file system, and no name that
/// is not there; the FUSE protocol would carry it.
async fn a_name_of_more_than_255_bytes_is_too_long(driver: DriverChoice) {
    use std::io::ErrorKind::{InvalidFilename, NotFound};
    let scene = Scene::new(driver).await;
    let mounted = scene.mounted(&odd_layer(), "at").await;
    let at = mounted.target.clone();
    let look = move || {
        for (length, expected) in [
            (255, NotFound),
            (256, InvalidFilename),
            (1000, InvalidFilename),
        ] {
            for folder in ["", "etc"] {
                let path = at.join(folder).join("n".repeat(length));
                let error = std::fs::symlink_metadata(path).unwrap_err();
                assert_eq!(error.kind(), expected, "{length} bytes in {folder:?}");
            }
        }
    };
    tokio::task::spawn_blocking(look).await.unwrap();
}

on_both_drivers!(
    a_name_of_more_than_255_bytes_is_too_long,
    both_drivers_show_bytes_and_attributes_of_the_tar,
    a_thousand_readers_fetch_each_chunk_once,
    implied_directories_take_the_attributes_they_are_given,
);
