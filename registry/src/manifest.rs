//! Manifests: asked for by tag or digest, checked, and put.

use bytes::Bytes;
use larder_proto::digest::Digest;
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, Response};

use crate::attempts::Purpose;
use crate::auth::Access;
use crate::body;
use crate::client::{Identifier, Repository};
use crate::endpoint::Endpoint;
use crate::error::{Cause, RegistryError};
use crate::exchange::{Call, Payload};
use crate::oci::{Descriptor, media_type};

/// Largest manifest, bytes: what the distribution specification tells registries to accept.
pub const MANIFEST_BYTES_MAX: u64 = 4 << 20;

/// The header by which registries name the digest of a manifest.
const CONTENT_DIGEST: &str = "docker-content-digest";

/// A manifest as a registry sent it, with its digest checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The digest of `bytes`.
    pub digest: Digest,
    /// What it is, by the registry's word or else by its own.
    pub media_type: String,
    /// The document, byte for byte.
    pub bytes: Bytes,
}

impl Manifest {
    /// The descriptor that points at this manifest.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor::new(&*self.media_type, self.digest, self.bytes.len() as u64)
    }
}

impl Repository {
    /// What `tag_or_digest` points at, without the manifest itself.
    pub async fn head_manifest(&self, tag_or_digest: &str) -> Result<Descriptor, RegistryError> {
        let doing = format!("resolve {tag_or_digest}");
        let id = Identifier::parse(tag_or_digest).map_err(|cause| self.error(&doing, cause))?;
        let mut attempts = self.attempts(id.purpose(), doing, 0).await?;
        loop {
            let endpoint = attempts.endpoint();
            match attempts.run(self.try_head(&endpoint, &id)).await {
                Ok(descriptor) => {
                    attempts.succeeded();
                    return Ok(descriptor);
                }
                Err(cause) => attempts.failed(cause).await?,
            }
        }
    }

    /// The manifest that `tag_or_digest` points at, of at most [`MANIFEST_BYTES_MAX`].
    pub async fn manifest(&self, tag_or_digest: &str) -> Result<Manifest, RegistryError> {
        let doing = format!("fetch manifest {tag_or_digest}");
        let id = Identifier::parse(tag_or_digest).map_err(|cause| self.error(&doing, cause))?;
        let mut attempts = self
            .attempts(id.purpose(), doing, MANIFEST_BYTES_MAX)
            .await?;
        loop {
            let endpoint = attempts.endpoint();
            match attempts.run(self.try_manifest(&endpoint, &id)).await {
                Ok(manifest) => {
                    attempts.succeeded();
                    return Ok(manifest);
                }
                Err(cause) => attempts.failed(cause).await?,
            }
        }
    }

    /// Puts a manifest under a tag, or under its digest alone.
    pub async fn put_manifest(
        &self,
        tag_or_digest: &str,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<Digest, RegistryError> {
        self.put(tag_or_digest, media_type, bytes)
            .await
            .map(|(digest, _)| digest)
    }

    /// Puts a manifest; also gives the headers of the answer.
    pub(crate) async fn put(
        &self,
        tag_or_digest: &str,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<(Digest, HeaderMap), RegistryError> {
        let doing = format!("put manifest {tag_or_digest}");
        let digest = Digest::of(&bytes);
        let prepared = prepare(tag_or_digest, media_type, &bytes, &digest);
        let (id, kind) = prepared.map_err(|cause| self.error(&doing, cause))?;
        let mut attempts = self
            .attempts(Purpose::Push, doing, bytes.len() as u64)
            .await?;
        loop {
            let endpoint = attempts.endpoint();
            let put = self.try_put(&endpoint, &id, kind.clone(), bytes.clone(), &digest);
            match attempts.run(put).await {
                Ok(headers) => {
                    attempts.succeeded();
                    return Ok((digest, headers));
                }
                Err(cause) => attempts.failed(cause).await?,
            }
        }
    }

    /// Takes a manifest away. Many registries do not do that unless they are told to.
    pub async fn delete_manifest(&self, digest: &Digest) -> Result<(), RegistryError> {
        let doing = format!("delete manifest {digest}");
        let mut attempts = self.attempts(Purpose::Push, doing, 0).await?;
        loop {
            let endpoint = attempts.endpoint();
            match attempts.run(self.try_delete(&endpoint, digest)).await {
                Ok(()) => {
                    attempts.succeeded();
                    return Ok(());
                }
                Err(cause) => attempts.failed(cause).await?,
            }
        }
    }

    fn manifest_call(
        &self,
        endpoint: &Endpoint,
        method: Method,
        id: &Identifier,
    ) -> Result<Call, Cause> {
        let mut call = self.call(endpoint, method, &id.path(), Access::Pull)?;
        let accept = HeaderValue::from_static(media_type::ACCEPT_MANIFESTS);
        call.headers.insert(ACCEPT, accept);
        Ok(call)
    }

    async fn try_head(&self, endpoint: &Endpoint, id: &Identifier) -> Result<Descriptor, Cause> {
        let call = self.manifest_call(endpoint, Method::HEAD, id)?;
        let (response, _) = self.read(endpoint, call).await?;
        let status = response.status().as_u16();
        let headers = response.headers();
        let digest = announced(headers);
        let size = text(headers, CONTENT_LENGTH.as_str()).and_then(|size| size.parse().ok());
        let kind = content_type(headers);
        if status == 200 && kind.as_deref() != Some("text/html") {
            if let (Some(digest), Some(size), Some(kind)) = (digest, size, kind) {
                return match id {
                    Identifier::Digest(asked) if *asked != digest => {
                        Err(wrong_digest(endpoint, *asked, digest))
                    }
                    _ => Ok(Descriptor::new(kind, digest, size)),
                };
            }
        } else if !matches!(status, 200 | 400 | 405 | 501) {
            return Err(self.refusal(endpoint, response).await);
        }
        // Some registries refuse HEAD, or answer it without the digest.
        self.try_manifest(endpoint, id)
            .await
            .map(|manifest| manifest.descriptor())
    }

    async fn try_manifest(&self, endpoint: &Endpoint, id: &Identifier) -> Result<Manifest, Cause> {
        let call = self.manifest_call(endpoint, Method::GET, id)?;
        let (response, _) = self.read(endpoint, call).await?;
        if response.status() != 200 {
            return Err(self.refusal(endpoint, response).await);
        }
        let (announced, kind) = (
            announced(response.headers()),
            content_type(response.headers()),
        );
        let bytes = self.read_manifest(endpoint, response).await?;
        let digest = Digest::of(&bytes);
        let expected = match id {
            Identifier::Digest(asked) => Some(*asked),
            Identifier::Tag(_) => announced,
        };
        // A page instead of a document has a cause worth naming; anything else is a lie.
        let document = bytes.trim_ascii_start().starts_with(b"{");
        if let Some(expected) = expected.filter(|expected| document && *expected != digest) {
            return Err(wrong_digest(endpoint, expected, digest));
        }
        let kind = kind_of(kind, &bytes).ok_or_else(|| Cause::Malformed {
            host: endpoint.host.clone(),
            detail: "this is no manifest; is there a login page or a proxy in between?".into(),
        })?;
        Ok(Manifest {
            digest,
            media_type: kind,
            bytes,
        })
    }

    async fn read_manifest(&self, endpoint: &Endpoint, response: Response) -> Result<Bytes, Cause> {
        let (host, timeouts) = (&endpoint.host, &endpoint.timeouts);
        body::read_all(response, host, "a manifest", MANIFEST_BYTES_MAX, timeouts).await
    }

    async fn try_delete(&self, endpoint: &Endpoint, digest: &Digest) -> Result<(), Cause> {
        let path = format!("manifests/{digest}");
        let call = self.call(endpoint, Method::DELETE, &path, Access::Delete)?;
        let response = self.send(endpoint, &call).await?;
        if !matches!(response.status().as_u16(), 200 | 202 | 204) {
            return Err(self.refusal(endpoint, response).await);
        }
        Ok(())
    }

    async fn try_put(
        &self,
        endpoint: &Endpoint,
        id: &Identifier,
        kind: HeaderValue,
        bytes: Bytes,
        digest: &Digest,
    ) -> Result<HeaderMap, Cause> {
        let mut call = self.call(endpoint, Method::PUT, &id.path(), Access::Push)?;
        call.headers.insert(CONTENT_TYPE, kind);
        call.payload = Payload::Bytes(bytes);
        call.timeout = endpoint.timeouts.commit;
        let response = self.send(endpoint, &call).await?;
        if !matches!(response.status().as_u16(), 200 | 201 | 202 | 204) {
            return Err(self.refusal(endpoint, response).await);
        }
        match announced(response.headers()) {
            Some(found) if found != *digest => Err(wrong_digest(endpoint, *digest, found)),
            _ => Ok(response.headers().clone()),
        }
    }
}

/// Checks what is to be put before anything is sent.
fn prepare(
    tag_or_digest: &str,
    media_type: &str,
    bytes: &Bytes,
    digest: &Digest,
) -> Result<(Identifier, HeaderValue), Cause> {
    let id = Identifier::parse(tag_or_digest)?;
    if let Identifier::Digest(named) = &id
        && named != digest
    {
        let text = format!("the manifest's digest is {digest}, not {named}");
        return Err(Cause::Local(text));
    }
    if bytes.len() as u64 > MANIFEST_BYTES_MAX {
        let bytes = bytes.len() as u64;
        return Err(Cause::TooLarge {
            what: "a manifest",
            bytes,
            limit: MANIFEST_BYTES_MAX,
        });
    }
    let kind = HeaderValue::try_from(media_type);
    let kind = kind.map_err(|_| Cause::Local(format!("{media_type:?} is no media type")))?;
    Ok((id, kind))
}

fn wrong_digest(endpoint: &Endpoint, expected: Digest, found: Digest) -> Cause {
    Cause::WrongDigest {
        host: endpoint.host.clone(),
        expected,
        found,
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The SHA-256 the registry announces; other algorithms are no business of ours.
fn announced(headers: &HeaderMap) -> Option<Digest> {
    text(headers, CONTENT_DIGEST).and_then(|text| text.parse().ok())
}

/// The media type without its parameters.
fn content_type(headers: &HeaderMap) -> Option<String> {
    let kind = text(headers, CONTENT_TYPE.as_str())?
        .split(';')
        .next()?
        .trim();
    (!kind.is_empty()).then(|| kind.to_owned())
}

/// The media type of a manifest: the header's unless that is a mere "some JSON", else its own.
///
/// `None` if the bytes are no JSON object: then it is no manifest, whatever the header says.
fn kind_of(header: Option<String>, bytes: &[u8]) -> Option<String> {
    let document: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    let object = document.as_object()?;
    let own = object.get("mediaType").and_then(|kind| kind.as_str());
    match header {
        Some(kind) if kind.starts_with("application/vnd.") => Some(kind),
        header => own.map(String::from).or_else(|| {
            // OCI documents need not name their type; their fields tell them apart.
            let kind = if object.contains_key("manifests") {
                media_type::OCI_INDEX
            } else if object.contains_key("layers") {
                media_type::OCI_MANIFEST
            } else {
                return header;
            };
            Some(kind.into())
        }),
    }
}
