//! Uploading blobs: resumed when broken off, whole where pieces are refused, mounted where the
//! registry has the blob already.
//!
//! ```text
//! exists? ─▶ POST (session) ─▶ PATCH bytes ─▶ PUT ?digest=      the usual way
//!                │               │ broken: GET session, go on from there
//!                │               └ refused: DELETE session, POST, PUT all bytes
//!                └ session lost: look whether the blob is there, else begin anew
//! ```

use std::sync::Arc;

use larder_proto::digest::Digest;
use reqwest::header::LOCATION;
use reqwest::{Method, Response};
use url::Url;

use crate::attempts::Purpose;
use crate::auth::Access;
use crate::authority::host_of;
use crate::client::Repository;
use crate::endpoint::Endpoint;
use crate::error::{Cause, RegistryError};
use crate::exchange::{Call, Payload};

mod session;
mod source;

use session::Session;
pub use source::{FileSource, UploadSource};

/// Told how many bytes of the blob have been handed to the connection; goes back on a resume.
pub(crate) type Progress = Arc<dyn Fn(u64) + Send + Sync>;

impl Repository {
    /// Puts a blob of `size` bytes there, unless it is there already.
    ///
    /// `source` is read more than once if the connection breaks. `progress` is told how many bytes
    /// are under way; it ends at `size`.
    pub async fn upload_blob(
        &self,
        digest: &Digest,
        size: u64,
        source: impl UploadSource,
        progress: impl Fn(u64) + Send + Sync + 'static,
    ) -> Result<(), RegistryError> {
        if self.exists(digest, Purpose::Push).await? == Some(size) {
            progress(size);
            return Ok(());
        }
        let doing = format!("upload blob {digest}");
        let mut attempts = self.attempts(Purpose::Push, doing, size).await?;
        let progress: Progress = Arc::new(progress);
        let mut session = Session::new(self, *digest, size, Arc::new(source), progress.clone());
        loop {
            let endpoint = attempts.endpoint();
            let before = session.stored();
            match attempts.run(session.advance(&endpoint)).await {
                Ok(()) => {
                    attempts.succeeded();
                    progress(size);
                    return Ok(());
                }
                Err(cause) => {
                    if session.stored() > before {
                        attempts.progressed();
                    }
                    if let Err(error) = attempts.failed(cause).await {
                        session.cancel(&endpoint).await;
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Asks whether we may push here, by beginning an upload and giving it up: registries say so
    /// only then, and whoever has hours of work before the first upload wants to know now.
    pub async fn may_push(&self) -> Result<(), RegistryError> {
        let mut attempts = self
            .attempts(Purpose::Push, "begin an upload".into(), 0)
            .await?;
        loop {
            let endpoint = attempts.endpoint();
            match attempts.run(self.try_begin(&endpoint)).await {
                Ok(()) => {
                    attempts.succeeded();
                    return Ok(());
                }
                Err(cause) => attempts.failed(cause).await?,
            }
        }
    }

    async fn try_begin(&self, endpoint: &Endpoint) -> Result<(), Cause> {
        let call = self.call(endpoint, Method::POST, "blobs/uploads/", Access::Push)?;
        let response = self.send(endpoint, &call).await?;
        if response.status().as_u16() != 202 {
            return Err(self.refusal(endpoint, response).await);
        }
        if let Ok(location) = location(endpoint, &call.url, &response) {
            self.cancel_upload(endpoint, location).await;
        }
        Ok(())
    }

    /// Makes a blob of another repository of the same registry appear in this one.
    ///
    /// `false` if the registry does not do that (or not for us): then the blob has to be uploaded.
    pub async fn mount_blob(
        &self,
        digest: &Digest,
        from_repository: &str,
    ) -> Result<bool, RegistryError> {
        let doing = format!("mount blob {digest} from {from_repository}");
        if !crate::reference::is_repository(from_repository) {
            let text = format!("{from_repository:?} is no repository");
            return Err(self.error(&doing, Cause::Local(text)));
        }
        let mut attempts = self.attempts(Purpose::Push, doing, 0).await?;
        loop {
            let endpoint = attempts.endpoint();
            match attempts
                .run(self.try_mount(&endpoint, digest, from_repository))
                .await
            {
                Ok(mounted) => {
                    attempts.succeeded();
                    return Ok(mounted);
                }
                // Mounting saves an upload and nothing more; the upload will say what is wrong.
                Err(
                    cause @ (Cause::Unauthorized { .. }
                    | Cause::Forbidden { .. }
                    | Cause::NotFound { .. }
                    | Cause::Refused { .. }),
                ) => {
                    tracing::debug!(%cause, %digest, from_repository, "not mounted");
                    return Ok(false);
                }
                Err(cause) => attempts.failed(cause).await?,
            }
        }
    }

    async fn try_mount(
        &self,
        endpoint: &Endpoint,
        digest: &Digest,
        from: &str,
    ) -> Result<bool, Cause> {
        let access = Access::Mount { from: from.into() };
        let mut call = self.call(endpoint, Method::POST, "blobs/uploads/", access)?;
        call.url
            .query_pairs_mut()
            .append_pair("mount", &digest.to_string())
            .append_pair("from", from);
        let response = self.send(endpoint, &call).await?;
        match response.status().as_u16() {
            201 => Ok(true),
            // It began an upload instead; nobody will finish that one.
            202 => {
                if let Ok(location) = location(endpoint, &call.url, &response) {
                    self.cancel_upload(endpoint, location).await;
                }
                Ok(false)
            }
            _ => Err(self.refusal(endpoint, response).await),
        }
    }

    /// Gives an upload up, so that the registry need not keep it until it expires. If that fails
    /// it does expire, hence no error.
    pub(crate) async fn cancel_upload(&self, endpoint: &Endpoint, location: Url) {
        let call = call_at(endpoint, Method::DELETE, location);
        match self.send(endpoint, &call).await {
            Ok(response) if response.status().is_success() => {}
            Ok(response) => {
                let refusal = self.refusal(endpoint, response).await;
                tracing::debug!(%refusal, "upload not cancelled");
            }
            Err(cause) => tracing::debug!(%cause, "upload not cancelled"),
        }
    }
}

/// A call of an upload under way, which goes where the registry said.
pub(crate) fn call_at(endpoint: &Endpoint, method: Method, url: Url) -> Call {
    Call {
        method,
        url,
        headers: reqwest::header::HeaderMap::new(),
        payload: Payload::Empty,
        access: Access::Push,
        timeout: endpoint.timeouts.answer,
        bare: false,
    }
}

/// Where an upload goes on: absolute, or relative to the request that was answered.
pub(crate) fn location(endpoint: &Endpoint, from: &Url, response: &Response) -> Result<Url, Cause> {
    let value = response
        .headers()
        .get(LOCATION)
        .and_then(|value| value.to_str().ok());
    let value = value.ok_or_else(|| Cause::Malformed {
        host: endpoint.host.clone(),
        detail: "it does not say where the upload goes on".into(),
    })?;
    resolve(from, value).map_err(|detail| Cause::Redirect {
        host: endpoint.host.clone(),
        detail,
    })
}

fn resolve(from: &Url, location: &str) -> Result<Url, String> {
    let mut url = from
        .join(location)
        .map_err(|_| "an upload to something that is no URL")?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("an upload to a URL of scheme {:?}", url.scheme()));
    }
    if from.scheme() == "https" && url.scheme() == "http" {
        // A registry behind a TLS proxy that does not know it is behind one.
        let same = url.host() == from.host() && matches!(url.port(), None | Some(80));
        let same_port = url.host() == from.host() && url.port() == from.port();
        if !same && !same_port {
            return Err(format!(
                "an upload to {} without TLS; not sending it there",
                host_of(&url)
            ));
        }
        let _ = url.set_scheme("https");
        let _ = url.set_port(from.port());
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_resolved_and_never_leave_tls() {
        let from = Url::parse("https://r.io:8443/v2/a/blobs/uploads/").unwrap();
        for (location, expected) in [
            (
                "/v2/a/blobs/uploads/1?s=x",
                Some("https://r.io:8443/v2/a/blobs/uploads/1?s=x"),
            ),
            ("1", Some("https://r.io:8443/v2/a/blobs/uploads/1")),
            ("https://up.io/1?s=x", Some("https://up.io/1?s=x")),
            ("http://r.io:8443/1", Some("https://r.io:8443/1")),
            ("http://r.io/1", Some("https://r.io:8443/1")),
            ("http://r.io:5000/1", None),
            ("http://up.io/1", None),
            ("file:///etc/passwd", None),
        ] {
            let found = resolve(&from, location);
            assert_eq!(found.as_ref().ok().map(Url::as_str), expected, "{location}");
        }
    }
}
