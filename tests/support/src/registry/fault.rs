//! The ways in which a registry fails.

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
    /// Answers 401 with this challenge.
    Challenge(String),
    /// Redirects to itself, for ever.
    RedirectLoop,
    /// Redirects to this URL.
    RedirectTo(String),
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
