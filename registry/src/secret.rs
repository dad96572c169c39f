//! Text that must never reach a log.

use std::fmt;

/// A password, token or signed header value; its `Debug` prints `<redacted>`.
///
/// There is no `Display` and no serialisation on purpose: the only way to the text is
/// [`Secret::expose`], which is easy to find in a review.
///
/// ```
/// let secret = larder_registry::Secret::new("hunter2");
/// println!("{secret:?}");
/// ```
///
/// ```compile_fail,E0277
/// let secret = larder_registry::Secret::new("hunter2");
/// println!("{secret}");
/// ```
///
/// ```compile_fail,E0277
/// let secret = larder_registry::Secret::new("hunter2");
/// let _: String = serde_json::to_string(&secret).unwrap_or_default();
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether there is no text at all.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_never_prints_its_text() {
        let secret = Secret::new("hunter2");
        assert_eq!(
            format!("{secret:?} {:?}", Some(&secret)),
            "<redacted> Some(<redacted>)"
        );
        assert_eq!(secret.expose(), "hunter2");
    }
}
