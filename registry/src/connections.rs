//! The connections to a host, given up together when one of them falls silent.
//!
//! A firewall that forgets connections, or a peer that is gone without a word, leaves all of them open at
//! this end: the idle ones look as good as ever. Each would cost an attempt of its own, and a read has
//! three within its deadline.

use std::sync::{Mutex, MutexGuard, PoisonError};

use reqwest::Client;

use crate::error::Cause;

/// An HTTP client with its connections, made when it is first needed, and anew after a silence.
#[derive(Debug, Default)]
pub(crate) struct Connections(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    client: Option<Client>,
    /// How often they were given up.
    generation: u64,
}

/// The client, lent for one request. Unless that is heard of, its connections are given up.
#[derive(Debug)]
pub(crate) struct Lent<'a> {
    connections: &'a Connections,
    client: Client,
    generation: u64,
    heard: bool,
}

impl Connections {
    /// The client there is, or one that `make` makes.
    pub(crate) fn lend(
        &self,
        make: impl FnOnce() -> Result<Client, Cause>,
    ) -> Result<Lent<'_>, Cause> {
        let known = {
            let state = self.lock();
            state.client.clone().map(|known| (known, state.generation))
        };
        let (client, generation) = if let Some(known) = known {
            known
        } else {
            // Not under the lock: it reads the system's authorities.
            let made = make()?;
            let mut state = self.lock();
            let client = state.client.get_or_insert(made).clone();
            (client, state.generation)
        };
        Ok(Lent {
            connections: self,
            client,
            generation,
            heard: false,
        })
    }

    /// Lets go of the connections of a generation. What is under way on them goes on.
    fn give_up(&self, generation: u64) {
        let mut state = self.lock();
        if state.generation == generation {
            state.client = None;
            state.generation += 1;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lent<'_> {
    /// The client.
    pub(crate) const fn client(&self) -> &Client {
        &self.client
    }

    /// Notes that the request was answered, or failed with something else than silence.
    pub(crate) fn heard(mut self) {
        self.heard = true;
    }
}

impl Drop for Lent<'_> {
    /// Also where whoever asked stops waiting: nobody waits longer than an answer may take.
    fn drop(&mut self) {
        if !self.heard {
            self.connections.give_up(self.generation);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: a silence gives up the connections it was met on, and not those that were made since.
    #[test]
    fn a_silence_gives_up_its_own_connections() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let connections = Connections::default();
        let made = std::cell::Cell::new(0);
        let lend = || {
            connections.lend(|| {
                made.set(made.get() + 1);
                Ok(Client::new())
            })
        };
        lend().unwrap().heard();
        let (first, second) = (lend().unwrap(), lend().unwrap());
        assert_eq!(made.get(), 1);
        drop(first);
        lend().unwrap().heard();
        assert_eq!(made.get(), 2);
        drop(second);
        lend().unwrap().heard();
        assert_eq!(
            made.get(),
            2,
            "the second silence was of the first connections"
        );
    }
}
