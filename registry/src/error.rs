//! What can go wrong between us and a registry, and what to do about it.

use std::time::Duration;

use larder_proto::digest::Digest;

use crate::failures::Failures;

/// A request to a registry that failed for good, after the retries it deserved.
///
/// The text names the registry, the repository, what was attempted, why it failed and, where
/// there is something to do, what to do.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}", self.describe())]
pub struct RegistryError(Box<Details>);

#[derive(Debug, Clone)]
struct Details {
    registry: String,
    repository: String,
    doing: String,
    cause: Cause,
    /// The failures of all hosts that were asked, or nothing if the cause tells everything.
    hosts: Option<Hosts>,
}

#[derive(Debug, Clone)]
struct Hosts {
    told: String,
    all_absent: bool,
}

/// Why a request failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// 401, also with the best credentials we have.
    #[error(
        "{host} does not accept the credentials{detail}: log in with `docker login {host}`, or name a file with credentials (--authfile, on nodes registry.authfile)"
    )]
    Unauthorized {
        /// The host to log in to.
        host: String,
        /// What the registry said, with a leading separator, or nothing.
        detail: String,
        /// Whether it was these credentials that were refused: they are not shown again for a while,
        /// and until then asking again fails at once.
        refused: bool,
    },
    /// 403.
    #[error("access denied{detail}: check that the account may do this in this repository")]
    Forbidden {
        /// What the registry said, with a leading separator, or nothing.
        detail: String,
    },
    /// 404 or 410.
    #[error("not found{detail}: check the name, and that the account may see it")]
    NotFound {
        /// What the registry said, with a leading separator, or nothing.
        detail: String,
    },
    /// Another status that repeating the request will not change.
    #[error("{host} answered {status}{detail}")]
    Refused {
        /// Who answered.
        host: String,
        /// The HTTP status.
        status: u16,
        /// What the registry said, with a leading separator, or nothing.
        detail: String,
    },
    /// A status that passes: 408, 429, 5xx.
    #[error("{host} is busy or broken (status {status}){detail}: try again later")]
    Unavailable {
        /// Who answered.
        host: String,
        /// The HTTP status.
        status: u16,
        /// How long the registry asked us to wait, clamped.
        retry_after: Option<Duration>,
        /// What the registry said, with a leading separator, or nothing.
        detail: String,
    },
    /// No answer, or a connection that broke.
    #[error("cannot talk to {host}: {detail}")]
    Connection {
        /// Whom we talked to.
        host: String,
        /// What happened.
        detail: String,
    },
    /// The server's certificate was not accepted. Repeating does not help.
    #[error("cannot trust {host}: {detail}")]
    Untrusted {
        /// Whom we talked to.
        host: String,
        /// What happened, and what to do.
        detail: String,
    },
    /// The answer stopped coming, or came slower than the minimum rate.
    #[error("the connection to {host} stalled: {bytes} bytes in {seconds} s")]
    Stalled {
        /// Whom we talked to.
        host: String,
        /// Bytes that came in the last measured time.
        bytes: u64,
        /// The measured time, seconds.
        seconds: u64,
    },
    /// The time for the whole call is over.
    #[error("gave up after {seconds} s{last}")]
    Deadline {
        /// The time there was, seconds.
        seconds: u64,
        /// The last failure before, with a leading separator, or nothing.
        last: String,
    },
    /// An answer that breaks the protocol or comes from something that is no registry.
    #[error("{host} gave a wrong answer: {detail}")]
    Malformed {
        /// Who answered.
        host: String,
        /// What is wrong with it.
        detail: String,
    },
    /// Content that is not what its digest says.
    #[error("{host} sent other content than asked for: expected {expected}, got {found}")]
    WrongDigest {
        /// Who sent it.
        host: String,
        /// The digest asked for, or announced.
        expected: Digest,
        /// The digest of what came.
        found: Digest,
    },
    /// A document larger than anything honest.
    #[error("{what} of {bytes} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// What it is.
        what: &'static str,
        /// Its size, or what had come when we stopped.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// A redirect we do not follow.
    #[error("{host} redirects {detail}")]
    Redirect {
        /// Who redirected.
        host: String,
        /// Where to, and why we do not go there.
        detail: String,
    },
    /// Something on our side: configuration, credentials, the file being uploaded.
    #[error("{0}")]
    Local(String),
}

impl Cause {
    /// Whether the same request may succeed later without anybody's help.
    pub const fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unavailable { .. } | Self::Connection { .. } | Self::Stalled { .. }
        )
    }

    /// How long the registry asked us to wait.
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unavailable { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

impl RegistryError {
    pub(crate) fn new(registry: &str, repository: &str, doing: &str, cause: Cause) -> Self {
        Self(Box::new(Details {
            registry: registry.into(),
            repository: repository.into(),
            doing: doing.into(),
            cause,
            hosts: None,
        }))
    }

    /// The same, telling what came of each host that was asked.
    pub(crate) fn among(mut self, failures: &Failures) -> Self {
        self.0.hosts = Some(Hosts {
            told: failures.told(),
            all_absent: failures.all_absent(),
        });
        self
    }

    fn describe(&self) -> String {
        let Details {
            registry,
            repository,
            doing,
            cause,
            hosts,
        } = &*self.0;
        let begin = format!("cannot {doing} in {registry}/{repository}");
        match hosts {
            Some(hosts) => format!("{begin}: {}", hosts.told),
            None => format!("{begin}: {cause}"),
        }
    }

    /// Why it failed; of several hosts, by the word of the one that decides.
    pub const fn cause(&self) -> &Cause {
        &self.0.cause
    }

    /// Whether the registry has no such thing (404 or 410).
    pub const fn is_not_found(&self) -> bool {
        matches!(self.cause(), Cause::NotFound { .. })
    }

    /// Whether the registry and all its mirrors that were asked have no such thing.
    pub fn is_absent_everywhere(&self) -> bool {
        let all = self.0.hosts.as_ref().is_none_or(|hosts| hosts.all_absent);
        self.is_not_found() && all
    }

    /// Whether the credentials were refused: until somebody changes them, asking again fails at once
    /// for a while.
    pub const fn is_refused(&self) -> bool {
        matches!(self.cause(), Cause::Unauthorized { refused: true, .. })
    }

    /// Whether other credentials would be needed (401).
    pub const fn is_unauthorized(&self) -> bool {
        matches!(self.cause(), Cause::Unauthorized { .. })
    }

    /// Whether the account may not do this (403).
    pub const fn is_forbidden(&self) -> bool {
        matches!(self.cause(), Cause::Forbidden { .. })
    }

    /// Whether trying again later may succeed without anybody's help.
    pub const fn is_transient(&self) -> bool {
        self.cause().is_transient() || matches!(self.cause(), Cause::Deadline { .. })
    }

    /// How long the registry asked us to wait, within the limits of [`crate::retry`].
    pub const fn retry_after(&self) -> Option<Duration> {
        self.cause().retry_after()
    }
}
