//! The ways in which a registry, and the network on the way to it, fail.

use std::time::Duration;

use bytes::Bytes;
use larder_proto::digest::Digest;

/// One way to misbehave.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Never answers.
    StallBeforeHeaders,
    /// Sends half of the body, then nothing, with the connection open.
    StallMidBody,
    /// Waits this long, then answers honestly.
    Delay(Duration),
    /// Sends so many bytes at a time, with a pause before each.
    Drip(usize, Duration),
    /// Announces the whole body and closes the connection after half of it.
    ShortBody,
    /// Sends more bytes than asked for.
    LongBody,
    /// Sends half of the body and resets the connection.
    Reset,
    /// Answers with the whole blob when asked for a part.
    IgnoreRange,
    /// Claims another range than the one it sends.
    WrongContentRange,
    /// Sends a multipart body.
    Multipart,
    /// Flips one bit in the middle.
    FlippedBit,
    /// Sends other bytes of the same length.
    OtherBlob,
    /// Answers with a status, and `Retry-After` if there is one.
    Status(u16, Option<String>),
    /// Answers with a status, and repeats in its error what it was asked: headers, query, body.
    Echo(u16),
    /// Answers with a status and an XML document, as object stores do.
    Xml(u16),
    /// Answers 401 with this challenge.
    Challenge(String),
    /// Takes back all tokens before it looks at the request.
    RevokeTokens,
    /// Takes back all signed URLs before it looks at the request.
    ExpireUrls,
    /// Redirects to itself, for ever.
    RedirectLoop,
    /// Redirects to this URL.
    RedirectTo(String),
    /// Redirects with these statuses, one after the other and by relative URLs, before it answers.
    RedirectChain(&'static [u16]),
    /// Refuses HEAD.
    NoHead,
    /// Says that the body is gzip.
    Gzip,
    /// Leaves out `Content-Length`.
    Chunked,
    /// Answers 200 with a log-in page, as a hotel's network does.
    Portal,
    /// Leaves out or overrides a header of the answer; an empty value leaves it out.
    Header(&'static str, String),
    /// Takes this many bytes of the request's body, keeps them, and resets the connection.
    CutUpload(usize),
    /// Does what it is asked, then resets the connection instead of answering.
    DropAnswer,
    /// Sends this body with status 200.
    Body(Bytes),
    /// Does not listen: connections are refused. For all requests, until the faults are cleared.
    Refuse,
    /// Accepts connections and resets them at once. For all requests.
    HangUp,
    /// Shows a bad certificate, or speaks a protocol that nobody does any more. For all requests.
    Tls(Flaw),
    /// Answers nothing more on the connections there are, and keeps them open, as a firewall does that has
    /// forgotten them. New ones are served. For all requests.
    Mute,
    /// Speaks HTTP/2 on so many connections, and ends each at once by GOAWAY. For all requests, by TLS.
    GoAway(u32),
    /// The proxy on the way fails. For all requests, of clients that go through [`super::FakeRegistry::proxy`].
    Proxy(BadProxy),
    /// Its name cannot be looked up. For all requests, of clients that ask
    /// [`super::Network::addresses`].
    Names(BadNames),
    /// The wall clock of the client is wrong by so many seconds; see
    /// [`super::Network::clock_error`].
    Clock(i64),
}

/// What is wrong with a TLS server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// Its certificate has expired.
    Expired,
    /// Its certificate is not valid yet.
    NotYetValid,
    /// Its certificate is for another name.
    OtherName,
    /// Its certificate is signed by itself.
    SelfSigned,
    /// Its certificate is signed by another authority.
    OtherAuthority,
    /// It speaks TLS 1.0 and nothing newer.
    OldProtocol,
    /// It speaks no TLS at all.
    Plain,
}

/// What is wrong with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadNames {
    /// There is no such name.
    Unknown,
    /// The name servers answer that they fail.
    Fail,
    /// The name servers do not answer.
    Silent,
    /// Of several addresses the first refuses connections.
    FirstRefuses,
    /// Of several addresses the first swallows connections.
    FirstIsDead,
    /// The first address is one of IPv6, and swallows connections.
    Ipv6IsDead,
    /// It has moved to another address; at the old one nobody listens.
    Moved,
}

/// What is wrong with a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadProxy {
    /// It takes nobody's user and password.
    WantsLogin,
    /// It resets connections.
    Resets,
    /// It answers nothing.
    Silent,
    /// It does not reach the registry.
    ReachesNobody,
}

impl Fault {
    /// What it is called, whatever its figures.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::StallBeforeHeaders => "stall before headers",
            Self::StallMidBody => "stall mid-body",
            Self::Delay(_) => "delay",
            Self::Drip(..) => "drip",
            Self::ShortBody => "short body",
            Self::LongBody => "long body",
            Self::Reset => "reset mid-body",
            Self::IgnoreRange => "range ignored",
            Self::WrongContentRange => "wrong Content-Range",
            Self::Multipart => "multipart",
            Self::FlippedBit => "flipped bit",
            Self::OtherBlob => "other blob",
            Self::Status(..) => "status",
            Self::Echo(_) => "echo",
            Self::Xml(_) => "XML",
            Self::Challenge(_) => "challenge",
            Self::RevokeTokens => "token expired",
            Self::ExpireUrls => "URL expired",
            Self::RedirectLoop => "redirect loop",
            Self::RedirectTo(_) => "redirect elsewhere",
            Self::RedirectChain(_) => "redirect chain",
            Self::NoHead => "HEAD refused",
            Self::Gzip => "gzip",
            Self::Chunked => "no Content-Length",
            Self::Portal => "portal page",
            Self::Header(..) => "header",
            Self::CutUpload(_) => "cut upload",
            Self::DropAnswer => "answer dropped",
            Self::Body(_) => "body",
            Self::Refuse => "connection refused",
            Self::HangUp => "connection reset",
            Self::Tls(_) => "TLS",
            Self::Names(_) => "names",
            Self::Mute => "connections silent",
            Self::GoAway(_) => "GOAWAY",
            Self::Proxy(_) => "proxy",
            Self::Clock(_) => "clock",
        }
    }

    /// The names of all faults that a reader can meet; the others are about pushing, or building blocks.
    pub const READ: [&'static str; 33] = [
        "stall before headers",
        "stall mid-body",
        "delay",
        "drip",
        "short body",
        "long body",
        "reset mid-body",
        "range ignored",
        "wrong Content-Range",
        "multipart",
        "flipped bit",
        "other blob",
        "status",
        "XML",
        "challenge",
        "token expired",
        "URL expired",
        "redirect loop",
        "redirect elsewhere",
        "redirect chain",
        "HEAD refused",
        "gzip",
        "no Content-Length",
        "portal page",
        "answer dropped",
        "connection refused",
        "connection reset",
        "TLS",
        "names",
        "connections silent",
        "GOAWAY",
        "proxy",
        "clock",
    ];

    /// Whether it is met below HTTP, where requests cannot be told apart.
    pub(super) const fn is_of_the_network(&self) -> bool {
        matches!(
            self,
            Self::Refuse
                | Self::HangUp
                | Self::Tls(_)
                | Self::Names(_)
                | Self::Clock(_)
                | Self::Mute
                | Self::GoAway(_)
                | Self::Proxy(_)
        )
    }
}

/// Which requests a fault is for.
#[derive(Debug, Clone)]
pub enum On {
    /// All.
    All,
    /// GET of any blob, at the registry or its CDN.
    Blobs,
    /// GET of one blob, at the registry or its CDN.
    Blob(Digest),
    /// What the CDN is asked.
    Cdn,
    /// Requests with this method whose path contains this text.
    Path(&'static str, &'static str),
}

impl On {
    pub(super) fn fits(&self, method: &str, path: &str, cdn: bool) -> bool {
        let blob = method == "GET" && (cdn || path.contains("/blobs/sha256:"));
        match self {
            Self::All => true,
            Self::Blobs => blob,
            Self::Blob(digest) => blob && path.contains(&digest.to_string()),
            Self::Cdn => cdn,
            Self::Path(wanted, part) => method == *wanted && path.contains(part),
        }
    }
}
