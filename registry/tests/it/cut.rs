//! Uploads to a real registry through a connection that is cut.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use larder_proto::digest::Digest;
use larder_test_support::registry::RealRegistry;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::world::{TestClock, noise, open, options};

/// Forwards to `registry`, but cuts the first connection that has sent `cut` bytes. Counts all
/// bytes sent.
async fn cutting(
    registry: std::net::SocketAddr,
    cut: u64,
) -> (std::net::SocketAddr, Arc<AtomicU64>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let sent = Arc::new(AtomicU64::new(0));
    let (count, limit) = (Arc::clone(&sent), Arc::new(AtomicU64::new(cut)));
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(registry).await.unwrap();
            let (count, limit) = (Arc::clone(&count), Arc::clone(&limit));
            tokio::spawn(forward(client, server, count, limit));
        }
    });
    (address, sent)
}

async fn forward(
    client: TcpStream,
    server: TcpStream,
    count: Arc<AtomicU64>,
    limit: Arc<AtomicU64>,
) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let back = tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
    let mut here = 0;
    let mut buffer = vec![0; 16 << 10];
    while let Ok(read @ 1..) = from_client.read(&mut buffer).await {
        here += read as u64;
        count.fetch_add(read as u64, Ordering::Relaxed);
        if to_server.write_all(&buffer[..read]).await.is_err() {
            break;
        }
        if here >= limit.load(Ordering::Relaxed) {
            limit.store(u64::MAX, Ordering::Relaxed);
            break;
        }
    }
    back.abort();
}

/// Promise: a cut connection does not fail a push. Whether the bytes before the cut are sent
/// again is the registry's to decide: the packaged one (2.8) forgets an upload that is cut inside a
/// PATCH, so they are, once.
#[tokio::test]
async fn a_cut_upload_is_completed() {
    const SIZE: u64 = 8 << 20;
    let registry = RealRegistry::start();
    let (address, sent) = cutting(registry.address(), SIZE / 2).await;
    let repository = open(
        &format!("{address}/team/app:v1"),
        options(&TestClock::new()),
    );
    let bytes = Bytes::from(noise(8 << 20));
    let digest = Digest::of(&bytes);
    repository
        .upload_blob(&digest, SIZE, bytes.clone(), |_| ())
        .await
        .unwrap();
    let sent = sent.load(Ordering::Relaxed);
    assert!(
        sent < SIZE * 7 / 4,
        "sent {sent} bytes for {SIZE}, half of it twice"
    );
    let direct = open(
        &registry.reference("team/app", "v1"),
        options(&TestClock::new()),
    );
    assert!(direct.blob_bytes(&digest, SIZE).await.unwrap() == bytes);
}
