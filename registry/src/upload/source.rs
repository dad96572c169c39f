//! Where the bytes of an upload come from.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

/// Bytes that can be read again from any offset, because uploads are resumed.
pub trait UploadSource: Send + Sync + 'static {
    /// Up to `length` bytes from `offset` on; at least one, unless `offset` is the end.
    fn read_at(&self, offset: u64, length: usize) -> BoxFuture<'_, io::Result<Bytes>>;
}

impl UploadSource for Bytes {
    fn read_at(&self, offset: u64, length: usize) -> BoxFuture<'_, io::Result<Bytes>> {
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(self.len());
        let end = start.saturating_add(length).min(self.len());
        Box::pin(std::future::ready(Ok(self.slice(start..end))))
    }
}

impl<S: UploadSource + ?Sized> UploadSource for Arc<S> {
    fn read_at(&self, offset: u64, length: usize) -> BoxFuture<'_, io::Result<Bytes>> {
        (**self).read_at(offset, length)
    }
}

/// A file to upload.
#[derive(Debug, Clone)]
pub struct FileSource {
    file: Arc<std::fs::File>,
    path: PathBuf,
}

impl FileSource {
    /// Opens the file at `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: Arc::new(std::fs::File::open(path)?),
            path: path.into(),
        })
    }
}

impl UploadSource for FileSource {
    fn read_at(&self, offset: u64, length: usize) -> BoxFuture<'_, io::Result<Bytes>> {
        let file = Arc::clone(&self.file);
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; length];
            let read = std::os::unix::fs::FileExt::read_at(&*file, &mut bytes, offset)?;
            bytes.truncate(read);
            Ok(Bytes::from(bytes))
        });
        Box::pin(async move {
            let read: io::Result<Bytes> = read.await.map_err(io::Error::other)?;
            read.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", self.path.display())))
        })
    }
}
