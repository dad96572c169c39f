//! The network on the way to a registry, and what is wrong with it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;

use super::fault::{BadNames, BadProxy, Fault, Flaw};
use super::wire::{Connection, Lever, threads};
use crate::certificates::Certificates;

/// A loopback address on which connections to a registry's port are swallowed.
const DEAD: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

/// One on which nobody listens.
const REFUSING: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));

/// The same of IPv6.
const DEAD_IPV6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// Where a registry is that has moved.
const MOVED: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 4));

/// How long a connection is waited for that should be swallowed.
const SWALLOWED: Duration = Duration::from_millis(100);

/// What a client is told of names and time, and what happens to its connections. Clones are the same.
#[derive(Debug, Clone)]
pub struct Network(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    address: SocketAddr,
    certificates: Option<Certificates>,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    fault: Option<Fault>,
    acceptor: Option<TlsAcceptor>,
    /// For HTTP/2, and for so many connections.
    go_away: Option<(TlsAcceptor, u32)>,
    inside: Vec<Weak<Lever>>,
    black_hole: Option<BlackHole>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}, {} connections", self.fault, self.inside.len())
    }
}

/// What the name servers answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LookedUp {
    /// These addresses, in this order.
    Addresses(Vec<SocketAddr>),
    /// That there is no such name.
    Unknown,
    /// That they fail.
    Failure,
    /// Nothing.
    Silence,
}

/// How a new connection is served.
pub(super) enum Service {
    /// As HTTP.
    Plain,
    /// As HTTP over TLS.
    Tls(TlsAcceptor),
    /// As a server of the last century.
    OldTls,
    /// By one that says that it goes away.
    GoAway(TlsAcceptor),
    /// It is reset.
    Reset,
}

impl Network {
    pub(super) fn new(address: SocketAddr, certificates: Option<Certificates>) -> Self {
        let inner = Inner {
            address,
            certificates,
            state: Mutex::default(),
            changed: Notify::new(),
        };
        let network = Self(Arc::new(inner));
        network.set(None);
        network
    }

    /// What the name servers say of the registry's name, whatever it is.
    pub fn addresses(&self) -> LookedUp {
        let good = self.0.address;
        let at = |ip| SocketAddr::new(ip, good.port());
        match self.lock().fault {
            Some(Fault::Names(BadNames::Unknown)) => LookedUp::Unknown,
            Some(Fault::Names(BadNames::Fail)) => LookedUp::Failure,
            Some(Fault::Names(BadNames::Silent)) => LookedUp::Silence,
            Some(Fault::Names(BadNames::FirstRefuses)) => {
                LookedUp::Addresses(vec![at(REFUSING), good])
            }
            Some(Fault::Names(BadNames::FirstIsDead)) => LookedUp::Addresses(vec![at(DEAD), good]),
            Some(Fault::Names(BadNames::Ipv6IsDead)) => {
                LookedUp::Addresses(vec![at(DEAD_IPV6), good])
            }
            Some(Fault::Names(BadNames::Moved)) => LookedUp::Addresses(vec![at(MOVED)]),
            _ => LookedUp::Addresses(vec![good]),
        }
    }

    /// Where a server listens now that otherwise is at `address`.
    pub(super) fn place(&self, address: SocketAddr) -> SocketAddr {
        let moved = matches!(self.lock().fault, Some(Fault::Names(BadNames::Moved)));
        if moved && address == self.0.address {
            SocketAddr::new(MOVED, address.port())
        } else {
            address
        }
    }

    /// What is wrong with the proxy.
    pub(super) fn bad_proxy(&self) -> Option<BadProxy> {
        match self.lock().fault {
            Some(Fault::Proxy(bad)) => Some(bad),
            _ => None,
        }
    }

    /// By how many seconds the client's wall clock is wrong.
    pub fn clock_error(&self) -> i64 {
        match self.lock().fault {
            Some(Fault::Clock(seconds)) => seconds,
            _ => 0,
        }
    }

    /// Brings a fault of the network on, or ends it. Whoever is connected is thrown out, or silenced.
    pub(super) fn set(&self, fault: Option<Fault>) {
        let acceptor = self.0.certificates.as_ref().map(|certificates| {
            TlsAcceptor::from(match fault {
                Some(Fault::Tls(flaw)) => certificates.flawed_config(flaw),
                _ => certificates.server_config(),
            })
        });
        let go_away = match (&fault, &self.0.certificates) {
            (Some(Fault::GoAway(times)), Some(certificates)) => {
                Some((TlsAcceptor::from(certificates.http2_config()), *times))
            }
            _ => None,
        };
        let dead = match fault {
            Some(Fault::Names(BadNames::FirstIsDead)) => Some(DEAD),
            Some(Fault::Names(BadNames::Ipv6IsDead)) => Some(DEAD_IPV6),
            _ => None,
        };
        let mute = matches!(fault, Some(Fault::Mute));
        let mut state = self.lock();
        // The old one goes first: it has the port.
        state.black_hole = None;
        state.black_hole = dead.map(|ip| BlackHole::at(SocketAddr::new(ip, self.0.address.port())));
        state.acceptor = acceptor;
        state.go_away = go_away;
        state.fault = fault;
        if mute {
            for lever in state.inside.iter().filter_map(Weak::upgrade) {
                Connection(lever).silence();
            }
        }
        drop(state);
        if !mute {
            self.throw_out();
        }
        self.0.changed.notify_waiters();
    }

    /// Ends the fault there is, if any.
    pub(super) fn heal(&self) {
        if self.lock().fault.is_some() {
            self.set(None);
        }
    }

    /// Resets all connections there are.
    pub(super) fn throw_out(&self) {
        let inside: Vec<_> = self.lock().inside.drain(..).collect();
        for lever in inside.iter().filter_map(Weak::upgrade) {
            Connection(lever).reset();
        }
    }

    pub(super) fn is_refusing(&self) -> bool {
        matches!(self.lock().fault, Some(Fault::Refuse))
    }

    /// Resolves when a fault comes or goes after the call.
    pub(super) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.0.changed.notified()
    }

    /// Lets a connection in, and says how to serve it.
    pub(super) fn admit(&self, connection: &Connection) -> Service {
        let mut state = self.lock();
        state.inside.retain(|lever| lever.strong_count() > 0);
        state.inside.push(Arc::downgrade(&connection.0));
        if let Some((acceptor, times)) = &mut state.go_away
            && *times > 0
        {
            *times -= 1;
            return Service::GoAway(acceptor.clone());
        }
        match (&state.fault, &state.acceptor) {
            (Some(Fault::HangUp | Fault::Refuse), _) => Service::Reset,
            (Some(Fault::Tls(Flaw::OldProtocol)), _) => Service::OldTls,
            (Some(Fault::Tls(Flaw::Plain)), _) | (_, None) => Service::Plain,
            (_, Some(acceptor)) => Service::Tls(acceptor.clone()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A socket whose queue is full: the kernel drops what else wants to connect.
struct BlackHole {
    _listener: TcpListener,
    _queue: Vec<TcpStream>,
}

impl BlackHole {
    fn at(address: SocketAddr) -> Self {
        let _threads = threads().enter();
        let socket = match address.ip() {
            IpAddr::V4(_) => tokio::net::TcpSocket::new_v4(),
            IpAddr::V6(_) => tokio::net::TcpSocket::new_v6(),
        };
        let socket = socket.expect("make a socket");
        socket.set_reuseaddr(true).expect("an option of sockets");
        socket
            .bind(address)
            .expect("bind a second loopback address");
        let listener = socket.listen(0).expect("listen with an empty queue");
        let fill = || TcpStream::connect_timeout(&address, SWALLOWED).ok();
        Self {
            _queue: std::iter::from_fn(fill).take(8).collect(),
            _listener: listener,
        }
    }
}
