//! Whether a layer belongs where its image's config puts it.
//!
//! A chain id names the tars of a layer and of all layers below it; containerd computes it from the
//! config, and checks it of what it unpacks. The index of a lazily loaded layer names a tar, too,
//! and everything proved later is proved of that one. So the two have to agree from the start: else
//! an honest index would be proved, and shared, under a chain that it is not of.

use larder_proto::digest::Digest;

use super::Reason;
use crate::containerd::chain_id;
use crate::store::Record;

/// Whether a layer whose tar has digest `diff_id` completes `chain` on top of the snapshot
/// `parent`; else why not, or why that cannot be known.
pub(super) fn belongs(
    chain: &str,
    parent: Option<&Record>,
    diff_id: &Digest,
) -> Result<(), Reason> {
    let below = match parent {
        None => None,
        Some(parent) => Some(parent.layer_chain().ok_or(Reason::NoChain)?),
    };
    let made = chain_id(below, diff_id);
    if made == chain {
        return Ok(());
    }
    Err(Reason::Foreign {
        diff_id: *diff_id,
        made,
        chain: chain.to_owned(),
    })
}
