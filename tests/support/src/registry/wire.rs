//! Listening sockets whose connections can be reset, with TLS where a test asks for it.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::certificates::Certificates;

/// How long a TLS handshake may take before the next connection is accepted.
const HANDSHAKE_MAX: Duration = Duration::from_secs(2);

/// A bound listener.
pub(super) struct Bound {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
}

/// A listener on a free loopback port.
pub(super) async fn bind(tls: Option<&Certificates>) -> Bound {
    let listener = TcpListener::bind(("127.0.0.1", 0))
        .await
        .expect("bind a loopback port");
    let address = listener
        .local_addr()
        .expect("a bound socket has an address");
    let tls = tls.map(|certificates| TlsAcceptor::from(certificates.server_config()));
    Bound {
        listener,
        address,
        tls,
    }
}

impl Bound {
    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:<port>`, or https.
    pub(super) fn origin(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection as the server sees it.
pub(super) struct Stream {
    io: Box<dyn Io>,
    connection: Connection,
}

/// The lever on a connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Connection(Arc<Lever>);

#[derive(Debug, Default)]
struct Lever {
    pulled: AtomicBool,
    reader: Mutex<Option<Waker>>,
}

impl Connection {
    /// Ends the connection with a reset, now.
    pub(super) fn reset(&self) {
        self.0.pulled.store(true, Ordering::Release);
        let reader = self
            .0
            .reader
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(waker) = reader {
            waker.wake();
        }
    }

    fn check(&self) -> io::Result<()> {
        if self.0.pulled.load(Ordering::Acquire) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }
}

impl Listener for Bound {
    type Io = Stream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Stream, SocketAddr) {
        loop {
            let Ok((tcp, peer)) = self.listener.accept().await else {
                continue;
            };
            let _ = tcp.set_nodelay(true);
            let connection = Connection::default();
            let plain = Resettable {
                tcp,
                connection: connection.clone(),
            };
            let Some(tls) = &self.tls else {
                return (
                    Stream {
                        io: Box::new(plain),
                        connection,
                    },
                    peer,
                );
            };
            let handshake = tokio::time::timeout(HANDSHAKE_MAX, tls.accept(plain));
            if let Ok(Ok(encrypted)) = handshake.await {
                return (
                    Stream {
                        io: Box::new(encrypted),
                        connection,
                    },
                    peer,
                );
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

impl Connected<IncomingStream<'_, Bound>> for Connection {
    fn connect_info(stream: IncomingStream<'_, Bound>) -> Self {
        stream.io().connection.clone()
    }
}

/// A TCP connection that ends with a reset once its lever is pulled.
struct Resettable {
    tcp: TcpStream,
    connection: Connection,
}

impl Drop for Resettable {
    fn drop(&mut self) {
        if self.connection.check().is_err() {
            let _ = self.tcp.set_zero_linger();
        }
    }
}

impl AsyncRead for Resettable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let waker = context.waker().clone();
        *self
            .connection
            .0
            .reader
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(waker);
        self.connection.check()?;
        Pin::new(&mut self.tcp).poll_read(context, buffer)
    }
}

impl AsyncWrite for Resettable {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.connection.check()?;
        Pin::new(&mut self.tcp).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
