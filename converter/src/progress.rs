//! What a conversion tells while it runs.

use larder_proto::digest::Digest;

use crate::report::LayerReport;

/// Something that happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// The image's documents are read; so many different layers are to be looked at.
    Planned {
        /// Number of layers.
        layers: usize,
    },
    /// A layer is being read.
    LayerStarted {
        /// Digest of the source layer.
        layer: Digest,
        /// Its length, bytes.
        size: u64,
    },
    /// More of a layer has been read.
    LayerAdvanced {
        /// Digest of the source layer.
        layer: Digest,
        /// Bytes since the last time.
        bytes: u64,
    },
    /// A layer is done; nothing has been pushed yet.
    LayerFinished {
        /// What became of it.
        report: &'a LayerReport,
    },
    /// A blob is being sent to the destination.
    UploadStarted {
        /// Its digest.
        blob: Digest,
        /// Its length, bytes.
        size: u64,
    },
    /// More of a blob has been sent.
    UploadAdvanced {
        /// Its digest.
        blob: Digest,
        /// Bytes so far; fewer again after a broken connection.
        sent: u64,
    },
    /// A blob is at the destination.
    UploadFinished {
        /// Its digest.
        blob: Digest,
    },
    /// Something the user should know.
    Note(&'a str),
}

/// Who is told. Called from several threads at once; it must not block for long.
pub trait Progress: Send + Sync {
    /// Takes note of an event.
    fn event(&self, event: &Event<'_>);
}

/// Nobody.
#[derive(Debug, Clone, Copy)]
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _: &Event<'_>) {}
}
