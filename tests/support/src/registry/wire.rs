//! Listening sockets whose connections can be reset, with TLS where a test asks for it.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::{Builder, Runtime};

use super::network::{Network, Service};

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

/// A bound socket on which nobody is answered yet.
pub(super) struct Bound {
    socket: std::net::TcpListener,
    /// Never listens; keeps the port while the registry refuses connections.
    holder: TcpSocket,
    address: SocketAddr,
}

/// A listener that answers.
pub(super) struct Listening {
    listener: Option<TcpListener>,
    _holder: TcpSocket,
    address: SocketAddr,
    /// Where it listens: elsewhere while the registry has moved.
    place: SocketAddr,
    network: Network,
}

/// A listener on a free loopback port.
pub(super) fn bind() -> Bound {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let holder = TcpSocket::new_v4().expect("make a socket");
    holder.set_reuseaddr(true).expect("an option of sockets");
    holder.bind(any).expect("bind a loopback port");
    let address = holder.local_addr().expect("a bound socket has an address");
    Bound {
        socket: listen_at(address),
        holder,
        address,
    }
}

fn listen_at(address: SocketAddr) -> std::net::TcpListener {
    let socket = std::net::TcpListener::bind(address).expect("bind a port that is ours");
    socket
        .set_nonblocking(true)
        .expect("a socket can be non-blocking");
    socket
}

impl Bound {
    /// Begins to answer, on the runtime that calls.
    pub(super) fn listen(self, network: Network) -> Listening {
        let listener = TcpListener::from_std(self.socket).expect("listen on a bound socket");
        Listening {
            listener: Some(listener),
            _holder: self.holder,
            address: self.address,
            place: self.address,
            network,
        }
    }

    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:<port>`, or https.
    pub(super) fn origin(&self, tls: bool) -> String {
        let scheme = if tls { "https" } else { "http" };
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
pub(super) struct Connection(pub(super) Arc<Lever>);

/// Ends a connection once it is pulled.
#[derive(Debug, Default)]
pub(super) struct Lever {
    pulled: AtomicBool,
    /// Nothing is read or written any more.
    silent: AtomicBool,
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

    /// Lets nothing through any more, and keeps the connection open.
    pub(super) fn silence(&self) {
        self.0.silent.store(true, Ordering::Release);
    }

    fn is_silent(&self) -> bool {
        self.0.silent.load(Ordering::Acquire)
    }

    /// Has the task woken that waits for the connection, when the lever is pulled.
    fn wake_later(&self, context: &Context<'_>) {
        let mut reader = self.0.reader.lock().unwrap_or_else(PoisonError::into_inner);
        *reader = Some(context.waker().clone());
    }

    pub(super) fn check(&self) -> io::Result<()> {
        if self.0.pulled.load(Ordering::Acquire) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }
}

impl Listening {
    /// The next connection, while connections are not refused.
    pub(super) async fn next(&mut self) -> TcpStream {
        loop {
            let network = self.network.clone();
            let mut changed = std::pin::pin!(network.changed());
            changed.as_mut().enable();
            if network.is_refusing() {
                self.listener = None;
                changed.await;
                continue;
            }
            let address = network.place(self.address);
            if address != self.place {
                self.listener = None;
                self.place = address;
            }
            let open = || TcpListener::from_std(listen_at(address)).expect("listen again");
            let listener = self.listener.get_or_insert_with(open);
            tokio::select! {
                accepted = TcpListener::accept(listener) => {
                    if let Ok((tcp, _)) = accepted {
                        return tcp;
                    }
                }
                () = &mut changed => {}
            }
        }
    }
}

impl Listener for Listening {
    type Io = Stream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Stream, SocketAddr) {
        loop {
            let tcp = self.next().await;
            let _ = tcp.set_nodelay(true);
            let peer = tcp.peer_addr().unwrap_or(self.address);
            let connection = Connection::default();
            let service = self.network.admit(&connection);
            if matches!(service, Service::Reset) {
                connection.reset();
            }
            let mut plain = Resettable {
                tcp,
                connection: connection.clone(),
            };
            let io: Box<dyn Io> = match service {
                Service::Plain => Box::new(plain),
                Service::Reset => continue,
                Service::OldTls => {
                    let _ = tokio::time::timeout(HANDSHAKE_MAX, say_old_hello(&mut plain)).await;
                    continue;
                }
                Service::GoAway(acceptor) => {
                    let farewell = async move { say_go_away(acceptor.accept(plain).await?).await };
                    threads().spawn(tokio::time::timeout(HANDSHAKE_MAX, farewell));
                    continue;
                }
                Service::Tls(acceptor) => {
                    let handshake = tokio::time::timeout(HANDSHAKE_MAX, acceptor.accept(plain));
                    match handshake.await {
                        Ok(Ok(encrypted)) => Box::new(encrypted),
                        _ => continue,
                    }
                }
            };
            return (Stream { io, connection }, peer);
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// Answers a client's greeting as a server that knows TLS 1.0 only, and hangs up.
async fn say_old_hello(stream: &mut Resettable) -> io::Result<()> {
    let mut greeting = [0; 4096];
    let _ = stream.read(&mut greeting).await?;
    // Record, handshake message, version; a random number, no session, AES-128 with SHA-1.
    let mut hello = vec![0x16, 3, 1, 0, 42, 2, 0, 0, 38, 3, 1];
    hello.extend([7; 32]);
    hello.extend([0, 0, 0x2f, 0]);
    stream.write_all(&hello).await?;
    // Time for the client to take offence before the connection ends.
    let _ = stream.read(&mut greeting).await?;
    Ok(())
}

/// Greets a client of HTTP/2, and says at once that no request was or will be served here.
async fn say_go_away(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    // Length, type, flags, stream: settings, none of them; GOAWAY, of stream 0 and without an error.
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await?;
    stream.write_all(&[0, 0, 8, 7, 0, 0, 0, 0, 0]).await?;
    stream.write_all(&[0; 8]).await?;
    stream.flush().await?;
    // Until the client goes as well.
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
    Ok(())
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
        self.connection.wake_later(context);
        self.connection.check()?;
        if self.connection.is_silent() {
            return Poll::Pending;
        }
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
        if self.connection.is_silent() {
            self.connection.wake_later(context);
            return Poll::Pending;
        }
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
