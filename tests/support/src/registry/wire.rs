//! Listening sockets whose connections can be reset, with TLS where a test asks for it.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio_rustls::TlsAcceptor;

use crate::certificates::Certificates;

/// How long a TLS handshake may take before the next connection is accepted.
const HANDSHAKE_MAX: Duration = Duration::from_secs(2);

/// The threads that answer for all fake registries of a test process.
pub(super) fn threads() -> &'static Runtime {
    static THREADS: OnceLock<Runtime> = OnceLock::new();
    let start = || {
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build();
        runtime.expect("start the threads of the fake registries")
    };
    THREADS.get_or_init(start)
}

/// Whether anybody is let in, and who is inside.
#[derive(Debug, Clone, Default)]
pub(super) struct Gate(Arc<GateState>);

#[derive(Debug, Default)]
struct GateState {
    down: AtomicBool,
    inside: Mutex<Vec<Weak<Lever>>>,
}

impl Gate {
    /// Opens or closes the gate; closing it throws everybody out.
    pub(super) fn set_down(&self, down: bool) {
        self.0.down.store(down, Ordering::Release);
        if down {
            let inside = self.0.inside.lock().unwrap_or_else(PoisonError::into_inner);
            for lever in inside.iter().filter_map(Weak::upgrade) {
                Connection(lever).reset();
            }
        }
    }

    /// Lets a connection in, unless the gate is closed.
    fn admit(&self, connection: &Connection) -> bool {
        let mut inside = self.0.inside.lock().unwrap_or_else(PoisonError::into_inner);
        inside.retain(|lever| lever.strong_count() > 0);
        inside.push(Arc::downgrade(&connection.0));
        !self.0.down.load(Ordering::Acquire)
    }
}

/// A bound socket on which nobody is answered yet.
pub(super) struct Bound {
    socket: std::net::TcpListener,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    gate: Gate,
}

/// A listener that answers.
pub(super) struct Listening {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    gate: Gate,
}

/// A listener on a free loopback port.
pub(super) fn bind(tls: Option<&Certificates>, gate: &Gate) -> Bound {
    let socket = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("bind a loopback port");
    socket
        .set_nonblocking(true)
        .expect("a socket can be non-blocking");
    let address = socket.local_addr().expect("a bound socket has an address");
    let tls = tls.map(|certificates| TlsAcceptor::from(certificates.server_config()));
    Bound {
        socket,
        address,
        tls,
        gate: gate.clone(),
    }
}

impl Bound {
    /// Begins to answer, on the runtime that calls.
    pub(super) fn listen(self) -> Listening {
        let Self {
            socket,
            address,
            tls,
            gate,
        } = self;
        let listener = TcpListener::from_std(socket).expect("listen on a bound socket");
        Listening {
            listener,
            address,
            tls,
            gate,
        }
    }

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

impl Listener for Listening {
    type Io = Stream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Stream, SocketAddr) {
        loop {
            let Ok((tcp, peer)) = self.listener.accept().await else {
                continue;
            };
            let _ = tcp.set_nodelay(true);
            let connection = Connection::default();
            if !self.gate.admit(&connection) {
                connection.reset();
            }
            let plain = Resettable {
                tcp,
                connection: connection.clone(),
            };
            if plain.connection.check().is_err() {
                continue;
            }
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

impl Connected<IncomingStream<'_, Listening>> for Connection {
    fn connect_info(stream: IncomingStream<'_, Listening>) -> Self {
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
