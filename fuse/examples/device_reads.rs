//! Mounts the layer of a tar from memory and waits: what `docs/adr/0002-device-reads.md` measures.
//!
//! `device_reads ROOT TAR erofs|fuse|direct READ_AHEAD_KB [lazy]` mounts at `ROOT-at`, prints one
//! line of JSON when it is ready, and another with the bytes and requests of the source and the reads
//! of the kernel at the end of its standard input. Without `lazy`, everything is in the store before
//! the first read.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use larder_fuse::{
    Answer, Arrivals, BoxFuture, DataPlane, DataPlaneConfig, DeviceReads, LayerSpec, Source,
};
use larder_test_support::layer::LayerFixture;

#[derive(Debug)]
struct Memory {
    blob: bytes::Bytes,
    bytes: AtomicU64,
    requests: AtomicU64,
}

impl Source for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn get<'a>(
        &'a self,
        range: std::ops::Range<u64>,
        _: &'a dyn Arrivals,
    ) -> BoxFuture<'a, Answer> {
        self.bytes
            .fetch_add(range.end - range.start, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        let bytes = self.blob.slice(place(range.start)..place(range.end));
        Box::pin(async { Answer::from(bytes) })
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [root, tar, driver, read_ahead, rest @ ..] = &arguments[..] else {
        return Err("usage: device_reads ROOT TAR erofs|fuse|direct READ_AHEAD_KB [lazy]".into());
    };
    let fixture = LayerFixture::sized(std::fs::read(tar)?, 256 << 10);
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let mut config = DataPlaneConfig::new(root);
        config.driver = if driver == "direct" { "erofs" } else { driver }.parse()?;
        config.device_reads = match driver.as_str() {
            "direct" => DeviceReads::Direct,
            _ => DeviceReads::Buffered {
                read_ahead_kb: read_ahead.parse()?,
            },
        };
        let plane = DataPlane::start(config).await?;
        let source = Arc::new(Memory {
            blob: fixture.blob.clone(),
            bytes: AtomicU64::new(0),
            requests: AtomicU64::new(0),
        });
        let started = Instant::now();
        let spec = LayerSpec {
            blob: fixture.digest,
            index: fixture.index,
            sources: vec![source.clone()],
            elsewhere: None,
        };
        drop(fixture);
        let layer = plane.add_layer(spec).await?;
        let at = PathBuf::from(format!("{root}-at"));
        std::fs::create_dir_all(&at)?;
        layer.mount(&at, &[]).await?;
        let mounted = started.elapsed();
        if rest.is_empty() {
            layer.fetch_all().await?;
        }
        let (bytes, requests) = (&source.bytes, &source.requests);
        let before = (
            bytes.load(Ordering::Relaxed),
            requests.load(Ordering::Relaxed),
        );
        println!("{{\"mount_ms\": {:.2}}}", mounted.as_secs_f64() * 1e3);
        std::io::stdin().read_to_end(&mut Vec::new())?;
        let counts = plane.counts();
        println!(
            "{{\"bytes\": {}, \"requests\": {}, \"reads\": {}}}",
            bytes.load(Ordering::Relaxed) - before.0,
            requests.load(Ordering::Relaxed) - before.1,
            counts.hits().count() + counts.misses().count()
        );
        plane.unmount(&at).await?;
        plane.shutdown().await;
        Ok(())
    })
}
