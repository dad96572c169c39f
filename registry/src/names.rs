//! What a host's name stands for: looked up once for however many ask, and remembered for when the name
//! servers are gone.
//!
//! hyper connects to the addresses of one family one after the other, each for its share of the time, and
//! begins with the other family 300 ms later. [`raced`] makes use of that: of several addresses of one
//! family, the others get a second start in the other family's form, so that a dead one costs 300 ms.

use std::collections::HashMap;
use std::fmt::{self, Debug};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::watch;
use tokio::time::Instant;

/// Names remembered, each with a few addresses: more registries and stores than any node uses. Above it all
/// are forgotten, which costs a look-up each.
const NAMES_MAX: usize = 1024;

/// Addresses used of one name: a connection tries them within seconds, and more would leave none of them
/// the time to answer.
const ADDRESSES_MAX: usize = 16;

/// How long name servers are waited for: less than a connection may take in all, so that the error says
/// that it was them. The system gives up after 10 s by default, with one server.
const LOOK_UP_MAX: Duration = Duration::from_secs(4);

/// The same where the addresses of the last time are known and can be used instead.
const RENEWAL_MAX: Duration = Duration::from_secs(1);

/// The addresses of host names: the system's, or what a test says.
pub trait Names: Debug + Send + Sync {
    /// All addresses of `host`, in the order to try them; their ports mean nothing.
    fn look_up(&self, host: &str) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>>;
}

/// The names of the system: `/etc/hosts`, the name servers.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemNames;

impl Names for SystemNames {
    fn look_up(&self, host: &str) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        let host = host.to_owned();
        Box::pin(async move { Ok(tokio::net::lookup_host((host, 0)).await?.collect()) })
    }
}

type Found = Result<Arc<[SocketAddr]>, Arc<io::Error>>;

/// Looks names up for all connections of a client.
#[derive(Clone)]
pub(crate) struct Resolver(Arc<Inner>);

struct Inner {
    names: Arc<dyn Names>,
    known: Mutex<HashMap<String, Known>>,
}

/// A look-up that is under way, and since when.
#[derive(Clone)]
struct Looking {
    begun: Instant,
    found: watch::Receiver<Option<Found>>,
}

impl Looking {
    async fn end(mut self) -> Found {
        let found = self.found.wait_for(Option::is_some).await;
        let found = found.ok().and_then(|found| found.clone());
        found.unwrap_or_else(|| Err(Arc::new(io::Error::other("the client is shutting down"))))
    }
}

/// What is known of one name.
#[derive(Default)]
struct Known {
    /// The look-up that is under way: one for however many ask, as each may block a thread for seconds.
    looking: Option<Looking>,
    /// What the last one that succeeded found.
    last: Option<Arc<[SocketAddr]>>,
}

impl Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Resolver({:?})", self.0.names)
    }
}

impl Resolver {
    pub(crate) fn new(names: Arc<dyn Names>) -> Self {
        let known = Mutex::default();
        Self(Arc::new(Inner { names, known }))
    }

    /// The addresses of `host` now, or those of the last time where the name servers fail.
    async fn find(&self, host: &str) -> io::Result<Arc<[SocketAddr]>> {
        let (looking, last) = self.look_up(host);
        // Of a crowd in an outage of the name servers, the first wait a moment and the others not at all.
        let (begin, patience) = match &last {
            Some(_) => (looking.begun, RENEWAL_MAX),
            None => (Instant::now(), LOOK_UP_MAX),
        };
        let error = match tokio::time::timeout_at(begin + patience, looking.end()).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(error)) => io::Error::new(error.kind(), error),
            Err(_elapsed) => {
                let text = format!("the name servers did not answer within {patience:?}");
                io::Error::new(io::ErrorKind::TimedOut, text)
            }
        };
        let Some(last) = last else { return Err(error) };
        tracing::debug!(host, %error, "using the addresses of the last time");
        Ok(last)
    }

    /// The look-up that is under way or begins now, and what the last one found.
    fn look_up(&self, host: &str) -> (Looking, Option<Arc<[SocketAddr]>>) {
        let mut known = self.lock();
        if known.len() >= NAMES_MAX && !known.contains_key(host) {
            known.clear();
        }
        let entry = known.entry(host.to_owned()).or_default();
        if let Some(looking) = &entry.looking {
            return (looking.clone(), entry.last.clone());
        }
        let (resolver, host) = (self.clone(), host.to_owned());
        let looked = self.0.names.look_up(&host);
        let (tell, found) = watch::channel(None);
        // A task of its own: who asked may stop waiting, and the next one needs the answer all the same.
        tokio::spawn(async move {
            // The system goes on asking for longer; meanwhile the name servers may be back.
            let looked = tokio::time::timeout(LOOK_UP_MAX, looked).await;
            let silent = |_| Err(io::Error::other("the name servers do not answer"));
            let found = looked.unwrap_or_else(silent).and_then(|found| some(&found));
            let found = resolver.settle(&host, found.map_err(Arc::new));
            tell.send_replace(Some(found));
        });
        let looking = Looking {
            begun: Instant::now(),
            found,
        };
        entry.looking = Some(looking.clone());
        (looking, entry.last.clone())
    }

    fn settle(&self, host: &str, found: Found) -> Found {
        if let Some(entry) = self.lock().get_mut(host) {
            entry.looking = None;
            if let Ok(found) = &found {
                entry.last = Some(Arc::clone(found));
            }
        }
        found
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn some(found: &[SocketAddr]) -> io::Result<Arc<[SocketAddr]>> {
    if found.is_empty() {
        return Err(io::Error::other("the name has no address"));
    }
    Ok(found.iter().take(ADDRESSES_MAX).copied().collect())
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.clone();
        Box::pin(async move {
            let found = resolver.find(name.as_str()).await;
            let found = found.map_err(|error| format!("{}: {error}", name.as_str()))?;
            Ok(Box::new(raced(&found).into_iter()) as Addrs)
        })
    }
}

/// The addresses in an order by which a dead one delays a connection by 300 ms only.
fn raced(found: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut raced = found.to_vec();
    let one_family = found.iter().all(SocketAddr::is_ipv4);
    if one_family && found.len() > 1 {
        // The one that would be tried last begins.
        let others = found.iter().rev().copied();
        raced.extend(others.map(in_the_other_form));
    }
    raced
}

/// An IPv4 address written as an IPv6 one: it leads to the same place.
fn in_the_other_form(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Answers what it is told, after a while.
    #[derive(Debug, Default)]
    struct Told {
        answer: Mutex<Option<Vec<SocketAddr>>>,
        delay: Mutex<Duration>,
        asked: AtomicUsize,
    }

    impl Told {
        fn set(&self, answer: Option<&str>, delay: u64) {
            let parsed = answer.map(|text| text.split(' ').map(|a| a.parse().unwrap()).collect());
            *self.answer.lock().unwrap() = parsed;
            *self.delay.lock().unwrap() = Duration::from_secs(delay);
        }
    }

    impl Names for Arc<Told> {
        fn look_up(&self, _: &str) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let (answer, delay) = (
                self.answer.lock().unwrap().clone(),
                *self.delay.lock().unwrap(),
            );
            Box::pin(async move {
                tokio::time::sleep(delay).await;
                answer.ok_or_else(|| io::Error::other("NXDOMAIN"))
            })
        }
    }

    fn resolver() -> (Arc<Told>, Resolver) {
        let told = Arc::new(Told::default());
        (Arc::clone(&told), Resolver::new(Arc::new(told)))
    }

    /// Promise: name servers that fail or are silent cost a host that was reached before nothing but a
    /// second; one that moved is found at its new place.
    #[tokio::test(start_paused = true)]
    async fn the_addresses_of_the_last_time_are_used_where_the_name_servers_fail() {
        let (told, resolver) = resolver();
        let find = async || resolver.find("r.test").await.map(|found| found.to_vec());
        assert!(find().await.unwrap_err().to_string().contains("NXDOMAIN"));
        told.set(Some("192.0.2.1:0"), 0);
        let first = find().await.unwrap();
        told.set(Some("192.0.2.2:0"), 0);
        let second = find().await.unwrap();
        assert_ne!(first, second);
        told.set(None, 0);
        assert_eq!(find().await.unwrap(), second);
        told.set(Some("192.0.2.3:0"), 60);
        let begun = tokio::time::Instant::now();
        assert_eq!(find().await.unwrap(), second);
        assert_eq!(begun.elapsed(), RENEWAL_MAX);
        assert_eq!(find().await.unwrap(), second);
        assert_eq!(begun.elapsed(), RENEWAL_MAX, "it waits once");
        tokio::time::sleep(LOOK_UP_MAX).await;
        told.set(Some("192.0.2.3:0"), 0);
        assert_ne!(
            find().await.unwrap(),
            second,
            "found as soon as they are back"
        );
    }

    /// Promise: silence of the name servers is named as that, and in time.
    #[tokio::test(start_paused = true)]
    async fn silent_name_servers_are_named() {
        let (told, resolver) = resolver();
        told.set(None, 600);
        let begun = tokio::time::Instant::now();
        let error = resolver.find("r.test").await.unwrap_err().to_string();
        assert!(error.contains("name servers d"), "{error}");
        assert_eq!(begun.elapsed(), LOOK_UP_MAX);
    }

    /// Promise: a crowd that waits for dead name servers blocks one thread, not one each.
    #[tokio::test(start_paused = true)]
    async fn a_crowd_looks_a_name_up_once() {
        let (told, resolver) = resolver();
        told.set(Some("192.0.2.1:0"), 3);
        let all = (0..500).map(|_| resolver.find("r.test"));
        let found = futures_util::future::join_all(all).await;
        assert!(found.iter().all(Result::is_ok));
        assert_eq!(told.asked.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn several_addresses_of_one_family_race() {
        let list = |text: &str| -> Vec<SocketAddr> {
            text.split(' ').map(|one| one.parse().unwrap()).collect()
        };
        for (found, expected) in [
            ("192.0.2.1:0", "192.0.2.1:0"),
            (
                "192.0.2.1:0 192.0.2.2:0",
                "192.0.2.1:0 192.0.2.2:0 [::ffff:192.0.2.2]:0 [::ffff:192.0.2.1]:0",
            ),
            ("[2001:db8::1]:0 192.0.2.1:0", "[2001:db8::1]:0 192.0.2.1:0"),
        ] {
            assert_eq!(raced(&list(found)), list(expected), "{found}");
        }
    }
}
