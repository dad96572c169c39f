//! A proxy on the way to a registry, for plain HTTP and, by CONNECT, for TLS.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::fault::BadProxy;
use super::network::Network;
use super::tokens::base64;
use super::wire::{Bound, threads};

/// Longest head of a request that is read, bytes; a client's has a few hundred.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// Lets whoever shows `login`, a user and a password, through to `registry`, whatever host is asked for.
pub(super) fn serve(
    bound: Bound,
    network: Network,
    registry: SocketAddr,
    login: &str,
) -> JoinHandle<()> {
    let login = format!("proxy-authorization: basic {}", base64(login)).to_lowercase();
    threads().spawn(async move {
        let mut listening = bound.listen(network.clone());
        loop {
            let client = listening.next().await;
            let (network, login) = (network.clone(), login.clone());
            threads().spawn(async move { relay(client, &network, registry, &login).await });
        }
    })
}

async fn relay(
    mut client: TcpStream,
    network: &Network,
    registry: SocketAddr,
    login: &str,
) -> io::Result<()> {
    let bad = network.bad_proxy();
    if bad == Some(BadProxy::Resets) {
        return client.set_zero_linger();
    }
    let head = read_head(&mut client).await?;
    let known = String::from_utf8_lossy(&head)
        .to_lowercase()
        .contains(login);
    let refusal: &[u8] = match bad {
        Some(BadProxy::Silent) => {
            // Until the client gives up.
            tokio::io::copy(&mut client, &mut tokio::io::sink()).await?;
            return Ok(());
        }
        Some(BadProxy::ReachesNobody) => b"HTTP/1.1 502 Bad Gateway\r\n",
        Some(BadProxy::WantsLogin) => b"HTTP/1.1 407 Proxy Authentication Required\r\n",
        _ if !known => b"HTTP/1.1 407 Proxy Authentication Required\r\n",
        _ => b"",
    };
    if !refusal.is_empty() {
        client.write_all(refusal).await?;
        let rest = b"proxy-authenticate: Basic realm=\"p\"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        client.write_all(rest).await?;
        return client.shutdown().await;
    }
    let mut server = TcpStream::connect(registry).await?;
    if head.starts_with(b"CONNECT ") {
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    } else {
        // Servers understand the whole URL that a client tells a proxy.
        server.write_all(&head).await?;
    }
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

/// All up to the empty line, and what came with it.
async fn read_head(client: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.windows(4).any(|four| four == b"\r\n\r\n") {
        if client.read_buf(&mut head).await? == 0 || head.len() > HEAD_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(head)
}
