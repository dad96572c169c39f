//! Who refers to a manifest: by the API, or by the tag that stands in for it.

use std::collections::BTreeSet;

use bytes::Bytes;
use larder_proto::digest::Digest;
use reqwest::Method;
use reqwest::header::{ACCEPT, HeaderValue, LINK};
use url::Url;

use crate::attempts::Purpose;
use crate::auth::Access;
use crate::body;
use crate::client::Repository;
use crate::endpoint::Endpoint;
use crate::error::{Cause, RegistryError};
use crate::exchange::same_origin;
use crate::manifest::MANIFEST_BYTES_MAX;
use crate::oci::{Descriptor, ImageIndex, media_type};

/// Pages of one listing: at ten referrers each, a manifest signed every day for three years.
const PAGES_MAX: usize = 100;

/// Referrers kept of one listing; a page of 4 MiB holds about this many.
const REFERRERS_MAX: usize = 10_000;

/// By this header a registry says that it keeps the list of referrers itself.
const SUBJECT: &str = "oci-subject";

impl Repository {
    /// The manifests whose `subject` is `digest`; none if there are none.
    ///
    /// Registries without the API are asked for the tag `sha256-<hex>` instead.
    pub async fn referrers(&self, digest: &Digest) -> Result<Vec<Descriptor>, RegistryError> {
        self.listed(digest, None, PAGES_MAX).await
    }

    /// Those of them that are artifacts of this type, from the first `pages` of the list. Registries that
    /// can leave the others out before they answer are asked to.
    pub async fn artifacts(
        &self,
        digest: &Digest,
        kind: &str,
        pages: usize,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let mut found = self.listed(digest, Some(kind), pages).await?;
        found.retain(|entry| entry.artifact_type.as_deref() == Some(kind));
        Ok(found)
    }

    async fn listed(
        &self,
        digest: &Digest,
        kind: Option<&str>,
        pages: usize,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let doing = format!("list what refers to {digest}");
        let mut attempts = self
            .attempts(Purpose::List, doing, MANIFEST_BYTES_MAX)
            .await?;
        let listed = loop {
            let endpoint = attempts.endpoint();
            let listing = self.try_referrers(&endpoint, digest, kind, pages);
            match attempts.run(listing).await {
                // A mirror without the API does not speak for the registry.
                Ok(None) if !attempts.is_final() => {
                    let detail = " (it has no list of referrers)".into();
                    attempts.failed(Cause::NotFound { detail }).await?;
                }
                Ok(listed) => {
                    attempts.succeeded();
                    break listed;
                }
                Err(cause) => attempts.failed(cause).await?,
            }
        };
        match listed {
            Some(listed) => Ok(listed),
            None => Ok(self.tagged_referrers(digest).await?.manifests),
        }
    }

    /// Puts a manifest that has a `subject`, so that it is found as a referrer of it.
    ///
    /// Where the registry does not keep the list, the tag that stands in for it is updated. Two
    /// writers who do that at the same moment can undo each other, as the specification admits;
    /// so it is read again afterwards, and written again if our entry is missing.
    pub async fn put_referrer(
        &self,
        subject: &Digest,
        descriptor: Descriptor,
        bytes: Bytes,
    ) -> Result<Digest, RegistryError> {
        let name = Digest::of(&bytes).to_string();
        let (digest, headers) = self.put(&name, &descriptor.media_type, bytes).await?;
        if headers.contains_key(SUBJECT) {
            return Ok(digest);
        }
        for _ in 0..TAG_WRITES_MAX {
            let mut index = self.tagged_referrers(subject).await?;
            if index.manifests.iter().any(|known| known.digest == digest) {
                return Ok(digest);
            }
            index.manifests.push(descriptor.clone());
            self.tag_referrers(subject, index).await?;
        }
        Ok(digest)
    }

    /// Takes a referrer of `subject` away: out of the list under the tag, if it is there, and then the
    /// manifest itself. That a registry keeps a manifest which is listed no longer is no failure.
    pub async fn remove_referrer(
        &self,
        subject: &Digest,
        referrer: &Digest,
    ) -> Result<(), RegistryError> {
        let mut was_tagged = false;
        for _ in 0..TAG_WRITES_MAX {
            let mut index = self.tagged_referrers(subject).await?;
            let before = index.manifests.len();
            index.manifests.retain(|known| known.digest != *referrer);
            if index.manifests.len() == before {
                break;
            }
            was_tagged = true;
            self.tag_referrers(subject, index).await?;
        }
        match self.delete_manifest(referrer).await {
            Err(error) if was_tagged => {
                tracing::debug!(%referrer, %error, "it is not listed any more, and stays");
                Ok(())
            }
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Writes the index under the tag that stands in for the API.
    async fn tag_referrers(
        &self,
        subject: &Digest,
        mut index: ImageIndex,
    ) -> Result<(), RegistryError> {
        index.media_type = Some(media_type::OCI_INDEX.into());
        let text = serde_json::to_vec(&index);
        let doing = format!("list what refers to {subject}");
        let text = text.map_err(|e| self.error(&doing, Cause::Local(e.to_string())))?;
        self.put_manifest(&tag_of(subject), media_type::OCI_INDEX, text.into())
            .await?;
        Ok(())
    }

    /// The index under the tag that stands in for the API; empty if there is none.
    async fn tagged_referrers(&self, digest: &Digest) -> Result<ImageIndex, RegistryError> {
        let tag = tag_of(digest);
        let manifest = match self.manifest(&tag).await {
            Ok(manifest) => manifest,
            Err(error) if error.is_not_found() => return Ok(ImageIndex::new(Vec::new())),
            Err(error) => return Err(error),
        };
        // Some registries answer with the subject itself: then nothing is known of referrers.
        if !media_type::is_index(&manifest.media_type) || manifest.digest == *digest {
            return Ok(ImageIndex::new(Vec::new()));
        }
        ImageIndex::parse(&manifest.bytes).map_err(|error| {
            let detail = format!("the tag {tag} is no index: {error}");
            self.error(
                "list referrers",
                Cause::Malformed {
                    host: self.registry().into(),
                    detail,
                },
            )
        })
    }

    /// At most so many pages of the API; `None` if the registry does not have it.
    async fn try_referrers(
        &self,
        endpoint: &Endpoint,
        digest: &Digest,
        kind: Option<&str>,
        pages: usize,
    ) -> Result<Option<Vec<Descriptor>>, Cause> {
        let path = format!("referrers/{digest}");
        let mut call = self.call(endpoint, Method::GET, &path, Access::Pull)?;
        if let Some(kind) = kind {
            call.url.query_pairs_mut().append_pair("artifactType", kind);
        }
        call.headers
            .insert(ACCEPT, HeaderValue::from_static(media_type::OCI_INDEX));
        let mut known = BTreeSet::new();
        let mut all = Vec::new();
        for page in 0..pages.min(PAGES_MAX) {
            let (response, _) = self.read(endpoint, call.clone()).await?;
            match response.status().as_u16() {
                200 => {}
                400 | 404 | 405 | 406 | 501 if page == 0 => return Ok(None),
                _ => return Err(self.refusal(endpoint, response).await),
            }
            let link = response
                .headers()
                .get(LINK)
                .and_then(|link| link.to_str().ok());
            let next = link.and_then(|link| next_page(&call.url, link));
            let (host, timeouts) = (&endpoint.host, &endpoint.timeouts);
            let read = body::read_all(
                response,
                host,
                "a list of referrers",
                MANIFEST_BYTES_MAX,
                timeouts,
            );
            let index = match ImageIndex::parse(&read.await?) {
                Ok(index) => index,
                // A page from something that is no registry, or does not know the API.
                Err(_) if page == 0 => return Ok(None),
                Err(error) => {
                    let detail = format!("a page of referrers is no index: {error}");
                    return Err(Cause::Malformed {
                        host: host.clone(),
                        detail,
                    });
                }
            };
            for descriptor in index.manifests {
                if all.len() < REFERRERS_MAX && known.insert(descriptor.digest) {
                    all.push(descriptor);
                }
            }
            match next.filter(|next| *next != call.url) {
                Some(next) => call.url = next,
                None => break,
            }
        }
        Ok(Some(all))
    }
}

/// Times the tag that stands in for the API is written for one referrer: again for each other writer
/// who was faster, of whom two at the same moment are more than signing gives.
const TAG_WRITES_MAX: usize = 3;

/// The tag that stands in for the API.
fn tag_of(digest: &Digest) -> String {
    format!("sha256-{}", digest.hex())
}

/// The next page by a `Link` header; only on the same server, because it gets our credentials.
fn next_page(from: &Url, link: &str) -> Option<Url> {
    let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
    let next = parameters
        .split(';')
        .map(str::trim)
        .any(|p| p == "rel=\"next\"" || p == "rel=next");
    let url = from.join(target).ok()?;
    (next && same_origin(&url, from)).then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_on_the_same_server() {
        let from = Url::parse("https://r.io/v2/a/referrers/x").unwrap();
        for (link, next) in [
            (
                "</v2/a/referrers/x?n=2>; rel=\"next\"",
                Some("https://r.io/v2/a/referrers/x?n=2"),
            ),
            (
                "<x?n=2>; rel=next",
                Some("https://r.io/v2/a/referrers/x?n=2"),
            ),
            ("<https://evil.io/>; rel=\"next\"", None),
            ("<http://r.io/>; rel=\"next\"", None),
            ("</y>; rel=\"prev\"", None),
            ("/y", None),
        ] {
            let found = next_page(&from, link);
            assert_eq!(found.as_ref().map(Url::as_str), next, "{link}");
        }
    }
}
