//! Small layers, which come whole with their index.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use larder_fuse::{
    Answer, Arrivals, BoxFuture, DataPlaneConfig, DriverChoice, LayerSpec, LayerState, Source,
};

use crate::scene::{Scene, layer_of, noise, read};

const WHOLE: u64 = 1 << 20;

fn whole(config: &mut DataPlaneConfig) {
    config.whole_layer_max = WHOLE;
}

/// Promise: a small layer is one request, and all of it is there before it is mounted; of one that takes longer to come
/// than a round trip only the index comes, and of any where that is not wanted.
#[tokio::test(flavor = "multi_thread")]
async fn a_small_layer_is_one_request() {
    for (len, max, is_whole) in [
        (150_000, WHOLE, true),
        (700_000, WHOLE, false),
        (150_000, 100_000, false),
        (150_000, 0, false),
    ] {
        let limit = |config: &mut DataPlaneConfig| config.whole_layer_max = max;
        let scene = Scene::with(DriverChoice::Fuse, limit).await;
        let data = noise(1, len);
        let fixture = layer_of(&data);
        let mounted = scene.mounted(&fixture, "at").await;
        let end = fixture.index.offset + fixture.index.stored_len;
        let start = if is_whole { 0 } else { fixture.index.offset };
        let asked = mounted.source.requests();
        assert_eq!((asked.len(), &asked[0]), (1, &(start..end)), "{len} {max}");
        let status = mounted.layer.status();
        assert_eq!(status.bytes_present == status.bytes_total, is_whole);
        assert_eq!(status.state == LayerState::Complete, is_whole);
        assert_eq!(status.sources[0].bytes > 150_000, is_whole);
        assert!(read(mounted.target.join("data")).await.unwrap() == data);
        assert_eq!(mounted.source.requests().len() == 1, is_whole);
    }
}

/// A blob with a wrong bit, the first time it is asked for.
#[derive(Debug)]
struct WrongOnce {
    blob: Bytes,
    at: usize,
    requests: AtomicUsize,
}

impl Source for WrongOnce {
    fn name(&self) -> &'static str {
        "wrong once"
    }

    fn get<'a>(&'a self, range: Range<u64>, _: &'a dyn Arrivals) -> BoxFuture<'a, Answer> {
        let place = |at: u64| usize::try_from(at).unwrap();
        let mut bytes = self.blob[place(range.start)..place(range.end)].to_vec();
        if self.requests.fetch_add(1, Ordering::Relaxed) == 0 {
            bytes[self.at] ^= 1;
        }
        Box::pin(async move { Answer::from(Bytes::from(bytes)) })
    }
}

/// Promise: what comes with an index is verified as anything else: a wrong chunk is left, and fetched again when it is
/// read.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_chunk_that_comes_with_the_index_is_left() {
    let scene = Scene::with(DriverChoice::Fuse, whole).await;
    let data = noise(2, 150_000);
    let fixture = layer_of(&data);
    let source = Arc::new(WrongOnce {
        blob: fixture.blob.clone(),
        at: 100_000,
        requests: AtomicUsize::new(0),
    });
    let spec = LayerSpec {
        blob: fixture.digest,
        index: fixture.index,
        sources: vec![source.clone()],
        elsewhere: None,
    };
    let layer = scene.plane().add_layer(spec).await.unwrap();
    let status = layer.status();
    assert!(status.bytes_present < 150_000, "{status:?}");
    let target = scene.directory("at");
    layer.mount(&target, &[]).await.unwrap();
    assert!(read(target.join("data")).await.unwrap() == data);
    assert_eq!(source.requests.load(Ordering::Relaxed), 2);
}
