//! What a fake registry is like when it is honest.

use std::time::Duration;

use crate::certificates::Certificates;

/// What a fake registry is like when it is honest.
#[derive(Debug, Clone)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a way registries differ"
)]
pub struct Settings {
    /// How clients log in.
    pub auth: Auth,
    /// Redirect reads of blobs to a second listener.
    pub cdn: Option<Cdn>,
    /// Answer the referrers API; without it clients must use tags.
    pub referrers: bool,
    /// Mount blobs of other repositories; without it an upload begins instead.
    pub mount: bool,
    /// Take uploads by PATCH; without it only whole, by PUT.
    pub patch: bool,
    /// Send absolute locations instead of relative ones.
    pub absolute_locations: bool,
    /// The smallest piece announced for uploads, bytes.
    pub piece_min: Option<u64>,
    /// Answer HEAD; without it 405.
    pub head: bool,
    /// Speak TLS with this certificate.
    pub tls: Option<Certificates>,
    /// Have a proxy on the way that wants this user and password, `user:password`.
    pub proxy: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            auth: Auth::None,
            cdn: None,
            referrers: true,
            mount: true,
            patch: true,
            absolute_locations: false,
            piece_min: None,
            head: true,
            tls: None,
            proxy: None,
        }
    }
}

/// How clients log in.
#[derive(Debug, Clone)]
pub enum Auth {
    /// Not at all.
    None,
    /// With a user name and a password at every request.
    Basic {
        /// The user.
        username: String,
        /// The password.
        password: String,
    },
    /// With tokens from `/token` on the same port.
    Token {
        /// The user; `None` gives tokens for reading to everybody, and no others.
        account: Option<(String, String)>,
        /// A refresh token that is as good as the password.
        identity: Option<String>,
        /// How long tokens are said to live, and do live.
        lifetime: Duration,
    },
}

/// A second listener that has the bytes of the blobs.
#[derive(Debug, Clone, Default)]
pub struct Cdn {
    /// Added to the query of every signed URL, such as `X-Amz-Expires=300&X-Amz-Date=…`.
    pub query: String,
    /// `Cache-Control` of the redirects.
    pub cache_control: Option<String>,
    /// Redirect HEAD too, although the URLs are signed for GET alone, as S3's are.
    pub head: bool,
    /// How many hops the redirect takes; at least one.
    pub hops: u32,
    /// Signed URLs live so long; `None` for ever, or until
    /// [`super::FakeRegistry::expire_urls`].
    pub lifetime: Option<Duration>,
    /// Whether the URLs say when they end, as S3's do; else clients find out.
    pub told: bool,
    /// With which status URLs that have ended are refused; 403 unless said otherwise.
    pub expired_status: Option<u16>,
}
