//! Mirrors from hosts.toml: in order, for reads only, and never a single point of failure.

use std::time::Duration;

use bytes::Bytes;
use larder_proto::digest::Digest;
use larder_registry::oci::{Descriptor, media_type};
use larder_registry::{ClientOptions, Repository};
use larder_test_support::registry::{FakeRegistry, Fault, On};

use crate::world::{TestClock, noise, open, options};

const SIZE: u64 = 50_000;

/// A registry named `r.test` that exists only through its hosts.toml.
struct World {
    mirrors: [FakeRegistry; 2],
    server: FakeRegistry,
    digest: Digest,
    bytes: Vec<u8>,
    repository: Repository,
    clock: TestClock,
    dir: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let mirrors = [FakeRegistry::start().await, FakeRegistry::start().await];
        let server = FakeRegistry::start().await;
        let bytes = noise(50_000);
        let mut digest = Digest::of(b"");
        for registry in mirrors.iter().chain([&server]) {
            digest = registry.push_blob(bytes.clone());
            registry.push_manifest(
                "team/app",
                "v1",
                media_type::OCI_MANIFEST,
                "{\"layers\":[]}",
            );
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("r.test")).unwrap();
        let clock = TestClock::new();
        let hosts_dir = Some(dir.path().into());
        let world = options(&clock);
        let repository = open("r.test/team/app:v1", ClientOptions { hosts_dir, ..world });
        let world = Self {
            mirrors,
            server,
            digest,
            bytes,
            repository,
            clock,
            dir,
        };
        world.configure("");
        world
    }

    /// Writes hosts.toml; `extra` is for the first mirror.
    fn configure(&self, extra: &str) {
        let [first, second] = &self.mirrors;
        let (first, second, server) = (first.host(), second.host(), self.server.host());
        let text = format!(
            "server = \"http://{server}\"\n[host.\"http://{first}\"]\n{extra}\n\
             [host.\"http://{second}\"]\ncapabilities = [\"pull\"]\n"
        );
        std::fs::write(self.dir.path().join("r.test/hosts.toml"), text).unwrap();
    }

    async fn read(&self) {
        let read = self.repository.blob_range(&self.digest, 0..SIZE).await;
        assert!(read.unwrap() == self.bytes);
    }

    /// Requests to the first mirror, the second, and the server since the last look.
    fn counts(&self) -> [usize; 3] {
        [&self.mirrors[0], &self.mirrors[1], &self.server].map(|registry| {
            let count = registry.requests().len();
            registry.clear_requests();
            count
        })
    }
}

#[tokio::test]
async fn the_first_mirror_answers_and_is_told_whose_image_it_is() {
    let world = World::new().await;
    world.read().await;
    let seen = world.mirrors[0].requests();
    assert_eq!(seen[0].query, "ns=r.test");
    world.repository.manifest("v1").await.unwrap();
    assert_eq!(world.counts(), [2, 0, 0]);
}

/// Promise: what refers to a manifest is found although a mirror does not know how to list that, or fails at it; the
/// mirror is asked for content as before.
#[tokio::test]
async fn a_mirror_that_lists_no_referrers_is_no_worse_for_content() {
    for status in [404, 405, 500, 503] {
        let world = World::new().await;
        let subject = Bytes::from_static(b"{\"layers\":[]}");
        let subject = Digest::of(&subject);
        let text = format!(r#"{{"layers":[],"subject":{{"digest":"{subject}"}}}}"#);
        let bytes = Bytes::from(text);
        let descriptor = Descriptor::of(media_type::OCI_MANIFEST, &bytes);
        let put = world.repository.put_referrer(&subject, descriptor, bytes);
        let referrer = put.await.unwrap();
        let on = On::Path("GET", "/referrers/");
        world.mirrors[0].fault(on, Fault::Status(status, None));
        let found = world.repository.referrers(&subject).await.unwrap();
        assert_eq!(found[0].digest, referrer, "{status}");
        assert_eq!(world.clock.waits(), [], "{status}");
        world.counts();
        world.read().await;
        assert_eq!(world.counts(), [1, 0, 0], "{status}");
    }
}

/// Whatever is wrong with a mirror, the next one is asked at once.
#[tokio::test]
async fn the_next_one_is_asked_whatever_is_wrong_with_the_first() {
    for fault in [
        Fault::Status(404, None),
        Fault::Status(401, None),
        Fault::Status(403, None),
        Fault::Status(503, Some("30".into())),
        Fault::StallBeforeHeaders,
        Fault::ShortBody,
        Fault::LongBody,
        Fault::WrongContentRange,
        Fault::Portal,
        Fault::RedirectLoop,
    ] {
        let world = World::new().await;
        world.mirrors[0].set_fault(fault.clone());
        world.read().await;
        let [_, second, server] = world.counts();
        assert_eq!((second, server), (1, 0), "{fault:?}");
        world.mirrors[1].set_fault(fault.clone());
        world.read().await;
        assert_eq!(world.counts()[2], 1, "{fault:?}");
        assert_eq!(world.clock.waits(), [], "{fault:?}");
    }
}

/// Promise: when nobody delivers, each host is told with its failure, first the one to be mended,
/// whatever the last one said.
#[tokio::test]
async fn every_host_that_failed_is_told() {
    let world = World::new().await;
    world.mirrors[0].set_fault(Fault::Status(503, None));
    world.mirrors[1].set_fault(Fault::Status(401, None));
    world.server.set_fault(Fault::Status(404, None));
    let read = world.repository.blob_range(&world.digest, 0..SIZE).await;
    let error = read.unwrap_err();
    let told = error.to_string();
    let place = |host: &FakeRegistry, words: &str| {
        let words = words.replace("{}", &host.host());
        told.find(&words)
            .unwrap_or_else(|| panic!("no {words} in {told}"))
    };
    let credentials = place(&world.mirrors[1], "{} does not accept the credentials");
    let busy = place(&world.mirrors[0], "{} is busy or broken");
    let absent = place(&world.server, "{}: not found");
    assert!(credentials < busy && busy < absent, "{told}");
    // What a caller decides by is still the registry's own word.
    assert!(error.is_not_found() && !error.is_absent_everywhere());
}

/// One slow read in thirty seconds, not one in each.
#[tokio::test]
async fn a_broken_mirror_is_passed_over_for_a_while() {
    let world = World::new().await;
    world.mirrors[0].set_fault(Fault::Status(500, None));
    for _ in 0..10 {
        world.read().await;
    }
    assert_eq!(world.counts(), [1, 10, 0]);
    world.mirrors[0].clear_faults();
    world.clock.advance(Duration::from_secs(31));
    world.read().await;
    assert_eq!(world.counts(), [1, 0, 0]);
}

#[tokio::test]
async fn capabilities_say_who_resolves_and_pushes() {
    let world = World::new().await;
    world.configure("capabilities = [\"pull\", \"push\"]");
    world.repository.head_manifest("v1").await.unwrap();
    assert_eq!(world.counts(), [0, 0, 1]);
    let bytes = Bytes::from(noise(1000));
    let digest = Digest::of(&bytes);
    world.mirrors[0].push_blob(bytes.clone());
    world
        .repository
        .upload_blob(&digest, 1000, bytes.clone(), |_| ())
        .await
        .unwrap();
    let kind = media_type::OCI_MANIFEST;
    world
        .repository
        .put_manifest("v2", kind, "{\"layers\":[]}".into())
        .await
        .unwrap();
    let [first, second, _] = world.counts();
    assert_eq!((first, second), (0, 0));
    assert_eq!(world.server.blob("team/app", &digest), Some(bytes));
}

#[tokio::test]
async fn headers_and_paths_are_as_configured() {
    let world = World::new().await;
    let host = world.mirrors[0].host();
    let header = format!("[host.\"http://{host}\".header]\nx-registry = \"https://r.test\"");
    world.configure(&header);
    world.read().await;
    let seen = world.mirrors[0].requests();
    assert_eq!(seen[0].headers["x-registry"], "https://r.test");
    // A header is for its own host; not for the next, and not for where it redirects.
    world.mirrors[0].set_fault(Fault::RedirectTo(format!(
        "http://{}/x",
        world.server.host()
    )));
    world.read().await;
    assert!(
        !world.server.requests()[0]
            .headers
            .contains_key("x-registry")
    );
    assert!(
        !world.mirrors[1].requests()[0]
            .headers
            .contains_key("x-registry")
    );
}

/// hosts.toml is read again while the client lives; a broken edit changes nothing.
#[tokio::test]
async fn a_changed_file_takes_effect_without_a_restart() {
    let world = World::new().await;
    world.read().await;
    let file = world.dir.path().join("r.test/hosts.toml");
    std::fs::write(&file, "server = ").unwrap();
    world.clock.advance(Duration::from_secs(31));
    world.read().await;
    assert_eq!(world.counts(), [2, 0, 0]);
    std::fs::write(
        &file,
        format!("server = \"http://{}\"\n", world.server.host()),
    )
    .unwrap();
    world.clock.advance(Duration::from_secs(31));
    world.read().await;
    assert_eq!(world.counts(), [0, 0, 1]);
}

/// What no mirror has and the registry has not either is not there; that is no failure.
#[tokio::test]
async fn absence_is_the_servers_to_declare() {
    let world = World::new().await;
    let nothing = Digest::of(b"nothing");
    assert_eq!(world.repository.blob_exists(&nothing).await.unwrap(), None);
    assert_eq!(world.counts(), [1, 1, 1]);
    world
        .server
        .fault_times(1, On::All, Fault::Status(500, None));
    assert_eq!(world.repository.blob_exists(&nothing).await.unwrap(), None);
    assert_eq!(world.counts(), [2, 2, 2]);
}

/// A mirror that lies is found out by whoever knows the digests, and is asked no more for a while.
#[tokio::test]
async fn a_lying_mirror_can_be_reported() {
    let world = World::new().await;
    world.mirrors[0].set_fault(Fault::FlippedBit);
    let (bytes, origin) = world
        .repository
        .blob_range_from(&world.digest, 0..SIZE, &())
        .await
        .unwrap();
    assert!(bytes != world.bytes);
    assert_eq!(origin.host(), world.mirrors[0].host());
    origin.distrust();
    world.read().await;
    world.read().await;
    assert_eq!(world.counts(), [1, 2, 0]);
    // When nobody is left, the one whose failure is longest ago is asked.
    for registry in [
        &world.mirrors[1],
        &world.server,
        &world.mirrors[0],
        &world.mirrors[1],
    ] {
        world.clock.advance(Duration::from_secs(1));
        let read = world
            .repository
            .blob_range_from(&world.digest, 0..SIZE, &())
            .await;
        let (_, origin) = read.unwrap();
        assert_eq!(origin.host(), registry.host());
        origin.distrust();
    }
}

/// Bytes of a mirror that broke off are not joined with another's.
#[tokio::test]
async fn bytes_of_two_endpoints_are_not_mixed() {
    let world = World::new().await;
    world.mirrors[0].set_fault(Fault::ShortBody);
    world.read().await;
    let ranges: Vec<_> = world.mirrors[1]
        .requests()
        .into_iter()
        .map(|r| r.range)
        .collect();
    assert_eq!(ranges, [Some(format!("bytes=0-{}", SIZE - 1))]);
}

/// Where the registry itself cannot be reached, a mirror that failed once is still asked.
#[tokio::test]
async fn a_mirror_in_disgrace_is_better_than_nobody() {
    let world = World::new().await;
    world.server.set_down(true);
    for registry in &world.mirrors {
        registry.fault_times(1, On::Blobs, Fault::Status(503, None));
    }
    world.read().await;
    world.read().await;
    assert_eq!(world.clock.waits().len(), 1);
    // And what the registry says is final, even with mirrors left to ask.
    world.server.set_down(false);
    world.clock.advance(Duration::from_secs(31));
    world.mirrors[0].set_fault(Fault::StallBeforeHeaders);
    world.read().await;
    world.counts();
    world.server.remove_blob(&world.digest);
    world.mirrors[1].remove_blob(&world.digest);
    let error = world
        .repository
        .blob_range(&world.digest, 0..10)
        .await
        .unwrap_err();
    assert!(error.is_not_found(), "{error}");
    assert_eq!(world.counts(), [0, 1, 1]);
}

/// Promise: when a whole blob turns out wrong, those who sent it are asked last the next time.
#[tokio::test]
async fn who_sent_a_wrong_blob_is_left_alone() {
    use futures_util::TryStreamExt as _;
    let world = World::new().await;
    world.mirrors[0].set_fault(Fault::FlippedBit);
    let body = world.repository.blob(&world.digest).await.unwrap();
    let senders = body.senders();
    assert!(body.verified().try_collect::<Vec<_>>().await.is_err());
    senders.distrust();
    world.counts();
    let body = world.repository.blob(&world.digest).await.unwrap();
    let pieces: Vec<_> = body.verified().try_collect().await.unwrap();
    assert!(pieces.concat() == world.bytes);
    assert_eq!(world.counts(), [0, 1, 0]);
}
