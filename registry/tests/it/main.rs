//! The client against registries that are honest, odd, broken and real.

#![expect(
    clippy::unwrap_used,
    reason = "a test whose world cannot be set up has failed"
)]

mod artifacts;
mod cut;
mod faults;
mod fetch;
mod login;
mod mirrors;
mod push;
mod real;
mod redirects;
mod referrers;
mod tls;
mod world;
