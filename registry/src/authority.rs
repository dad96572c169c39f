//! The host of a URL as it may be told.

use url::{Position, Url};

/// Host and port of `url` without user name and password: a redirect or a token server may carry
/// them, and whatever is named in an error ends up in a log.
pub(crate) fn host_of(url: &Url) -> &str {
    &url[Position::BeforeHost..Position::AfterPort]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_told_without_the_password_before_it() {
        for (url, told) in [
            ("https://r.io/x?sig=1", "r.io"),
            ("https://r.io:443/x", "r.io"),
            ("https://anna:hunter2@cdn.io:8443/x", "cdn.io:8443"),
            ("http://token@[::1]:5000/", "[::1]:5000"),
        ] {
            assert_eq!(host_of(&Url::parse(url).unwrap()), told);
        }
    }
}
