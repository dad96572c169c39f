//! A registry that can lie, stall and fail, and remembers what it was asked.
//!
//! [`FakeRegistry`] speaks the distribution protocol from memory on a loopback port and misbehaves
//! as its [`Fault`]s say. [`RealRegistry`] runs the packaged `docker-registry`.

use std::net::SocketAddr;
use std::sync::{Arc, MutexGuard, PoisonError};

use bytes::Bytes;
use larder_proto::digest::Digest;
use tokio::task::JoinHandle;

mod answer;
mod blobs;
mod fault;
mod manifests;
mod network;
mod proxy;
mod real;
mod settings;
mod state;
mod tokens;
mod uploads;
mod wire;

pub use fault::{BadNames, BadProxy, Fault, Flaw, On};
pub use network::{LookedUp, Network};
pub use real::{RealOptions, RealRegistry};
pub use settings::{Auth, Cdn, Settings};
pub use state::Seen;

use state::{OneIn, Rule, Shared, State};

/// A registry in memory. Dropping it closes its ports.
#[derive(Debug)]
pub struct FakeRegistry {
    state: Shared,
    address: SocketAddr,
    servers: Vec<JoinHandle<()>>,
    network: Network,
    proxy: Option<String>,
}

impl FakeRegistry {
    /// An empty registry without log-in, on a free loopback port.
    #[expect(clippy::unused_async, reason = "tests await what talks to the network")]
    pub async fn start() -> Self {
        Self::start_now(Settings::default())
    }

    /// An empty registry as `settings` say.
    #[expect(clippy::unused_async, reason = "tests await what talks to the network")]
    pub async fn start_with(settings: Settings) -> Self {
        Self::start_now(settings)
    }

    /// The same for tests that have no runtime. It answers from threads of its own, so a test may
    /// block while it waits for an answer.
    pub fn start_now(settings: Settings) -> Self {
        let (tls, login) = (settings.tls.clone(), settings.proxy.clone());
        let listener = wire::bind();
        let address = listener.address();
        let network = Network::new(address, tls.clone());
        let mut state = State::new(settings);
        state.origin = listener.origin(tls.is_some());
        let mut listeners = vec![(listener, false)];
        if state.settings.cdn.is_some() {
            let cdn = wire::bind();
            state.cdn_origin = cdn.origin(tls.is_some());
            listeners.push((cdn, true));
        }
        let state: Shared = Arc::new(std::sync::Mutex::new(state));
        let serve =
            |(listener, cdn)| answer::serve(listener, network.clone(), Arc::clone(&state), cdn);
        let mut servers: Vec<_> = listeners.into_iter().map(serve).collect();
        let proxy = login.map(|login| {
            let bound = wire::bind();
            let url = format!("http://{login}@{}", bound.address());
            servers.push(proxy::serve(bound, network.clone(), address, &login));
            url
        });
        Self {
            state,
            address,
            servers,
            network,
            proxy,
        }
    }

    /// Breaks all connections and lets nobody in, until told otherwise.
    pub fn set_down(&self, down: bool) {
        self.network.set(down.then_some(Fault::HangUp));
    }

    /// Breaks all connections there are.
    pub fn break_connections(&self) {
        self.network.throw_out();
    }

    /// The URL of the proxy on the way to it, with user and password, if there is one.
    pub fn proxy(&self) -> Option<&str> {
        self.proxy.as_deref()
    }

    /// The network on the way to it, as its faults have it.
    pub fn network(&self) -> Network {
        self.network.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its name in references: `127.0.0.1:<port>`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// `127.0.0.1:<port>/<repository>:<tag>`.
    pub fn reference(&self, repository: &str, tag: &str) -> String {
        format!("{}/{repository}:{tag}", self.address)
    }

    /// Puts a blob into every repository.
    pub fn push_blob(&self, bytes: impl Into<Bytes>) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::of(&bytes);
        self.state().blobs.insert((None, digest), bytes);
        digest
    }

    /// Puts a blob into one repository.
    pub fn push_blob_into(&self, repository: &str, bytes: impl Into<Bytes>) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::of(&bytes);
        self.state()
            .blobs
            .insert((Some(repository.into()), digest), bytes);
        digest
    }

    /// Puts a manifest under a tag and under its digest.
    pub fn push_manifest(
        &self,
        repository: &str,
        tag: &str,
        media_type: &str,
        bytes: impl Into<Bytes>,
    ) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::of(&bytes);
        let mut state = self.state();
        let entry = (media_type.to_owned(), bytes);
        state.manifests.insert((repository.into(), digest), entry);
        state.tags.insert((repository.into(), tag.into()), digest);
        digest
    }

    /// Removes a blob everywhere.
    pub fn remove_blob(&self, digest: &Digest) {
        self.state().blobs.retain(|(_, known), _| known != digest);
    }

    /// The blob in `repository`, as pushed by a client or by the test.
    pub fn blob(&self, repository: &str, digest: &Digest) -> Option<Bytes> {
        self.state().blob(repository, digest)
    }

    /// The media type and bytes of the manifest that a tag or digest points at.
    pub fn manifest(&self, repository: &str, tag_or_digest: &str) -> Option<(String, Bytes)> {
        self.state()
            .manifest(repository, tag_or_digest)
            .map(|(_, entry)| entry)
    }

    /// Uploads begun and neither completed nor cancelled.
    pub fn open_uploads(&self) -> usize {
        self.state().uploads.len()
    }

    /// Answers every GET of a blob with `fault`, until told otherwise.
    pub fn set_fault(&self, fault: Fault) {
        self.fault(On::Blobs, fault);
    }

    /// Answers the requests that `on` names with `fault`, until [`FakeRegistry::clear_faults`].
    ///
    /// Those of the network are for all requests, whatever `on` says, and one at a time.
    pub fn fault(&self, on: On, fault: Fault) {
        if fault.is_of_the_network() {
            self.network.set(Some(fault));
            return;
        }
        self.push_rule(on, fault, None, None);
    }

    /// Answers the next `times` requests that `on` names with `fault`.
    pub fn fault_times(&self, times: u32, on: On, fault: Fault) {
        self.push_rule(on, fault, Some(times), None);
    }

    /// Answers one of `many` requests that `on` names with `fault`: one of each `many` that follow each
    /// other, at a place that `seed` decides.
    pub fn fault_one_in(&self, many: usize, seed: u64, on: On, fault: Fault) {
        self.push_rule(on, fault, None, Some(OneIn::new(many, seed)));
    }

    /// How many requests got a fault since the faults were last cleared.
    pub fn faults_done(&self) -> usize {
        self.state().rules.iter().map(|rule| rule.done).sum()
    }

    fn push_rule(&self, on: On, fault: Fault, left: Option<u32>, some: Option<OneIn>) {
        self.state().rules.push(Rule {
            on,
            fault,
            left,
            some,
            done: 0,
        });
    }

    /// Is honest from now on.
    pub fn clear_faults(&self) {
        self.state().rules.clear();
        self.network.heal();
    }

    /// Refuses all tokens given out so far.
    pub fn revoke_tokens(&self) {
        self.state().tokens.clear();
    }

    /// Refuses all signed URLs given out so far.
    pub fn expire_urls(&self) {
        self.state().expire_urls();
    }

    /// Everything it was asked, in order, the CDN included.
    pub fn requests(&self) -> Vec<Seen> {
        self.state().seen.clone()
    }

    /// Forgets what it was asked and how much it sent.
    pub fn clear_requests(&self) {
        let mut state = self.state();
        state.seen.clear();
        state.blob_bytes_sent = 0;
    }

    /// Bytes of blobs sent so far; not headers, not manifests.
    pub fn blob_bytes_sent(&self) -> u64 {
        self.state().blob_bytes_sent
    }
}

impl Drop for FakeRegistry {
    fn drop(&mut self) {
        for server in &self.servers {
            server.abort();
        }
        self.network.set(Some(Fault::HangUp));
    }
}
