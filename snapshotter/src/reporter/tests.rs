//! Names of images, and events that nobody takes. Events that containerd takes are in `tests/node`.

use std::collections::BTreeMap;

use larder_proto::digest::Digest;

use super::*;
use crate::store::{Content, LayerFacts, Origin, Owner};

struct World {
    reporter: Reporter,
    store: Arc<Store>,
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(dir.path()).unwrap());
        let reporter = Reporter::new(Containerd::new(dir.path().join("none.sock")));
        reporter.know(Arc::clone(&store));
        Self {
            reporter,
            store,
            dir,
        }
    }

    /// A lazily loaded layer of an image, with CRI's label if it has a name.
    fn layer(&self, namespace: &str, index: &Digest, image: Option<&str>) {
        let id = self.store.reserve().unwrap();
        let labels = image.map(|image| (IMAGE_LABEL.to_owned(), image.to_owned()));
        let content = Content::Layer {
            index: index.to_string(),
            owner: Owner::ROOT,
        };
        let facts = LayerFacts {
            blob: index.to_string(),
            location: String::new(),
            origins: vec![Origin {
                host: "r.test:5000".into(),
                repository: "team/app".into(),
                plain_http: false,
            }],
            namespace: namespace.into(),
            implied: Vec::new(),
        };
        let name = format!("{namespace}/{id}/lazy chain");
        let labels: BTreeMap<_, _> = labels.into_iter().collect();
        self.store
            .adopt(id, &name, "", labels, content, &facts)
            .unwrap();
    }
}

/// Promise: a layer is told by the images that brought it, as containerd names them; where nobody
/// named one, by its repository; never by more than three.
#[tokio::test]
async fn a_layer_is_told_by_its_images() {
    let world = World::new();
    let (one, other) = (Digest::of(b"one"), Digest::of(b"other"));
    let told = |index| {
        let images = world.reporter.images(index).unwrap();
        told(images.iter().map(|(_, name)| name.as_str()))
    };
    assert_eq!(told(&one), "");
    world.layer("default", &one, None);
    assert_eq!(told(&one), "r.test:5000/team/app");
    world.layer("k8s.io", &one, Some("r.test:5000/team/app:1"));
    world.layer("k8s.io", &other, Some("r.test/other:1"));
    assert_eq!(told(&one), "r.test:5000/team/app, r.test:5000/team/app:1");
    for tag in 2..9 {
        world.layer("k8s.io", &one, Some(&format!("r.test:5000/team/app:{tag}")));
    }
    let many = told(&one);
    assert!(many.ends_with("app:2 and 6 more"), "{many}");
}

/// Promise: without containerd, a quarantine is counted as not published, and nothing waits.
#[tokio::test]
async fn an_event_that_nobody_takes_is_counted() {
    let world = World::new();
    let index = Digest::of(b"one");
    world.layer("default", &index, None);
    world.layer("k8s.io", &index, Some("r.test/app:1"));
    let reporter = &world.reporter;
    reporter.quarantined(LayerId(index), index, "another mode");
    let published = reporter.published();
    let both = [("published", 0), ("failed", 2)];
    let ended = async {
        while published.counts() != both {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), ended)
        .await
        .unwrap_or_else(|_| panic!("{:?} in {:?}", published.counts(), world.dir));
}
