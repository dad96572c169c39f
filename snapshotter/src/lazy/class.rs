//! Reasons in classes, for figures: what an operator would do about them is the same.

use super::Reason;
use crate::plane::PlaneError;

impl Reason {
    /// All classes.
    pub(crate) const CLASSES: [&'static str; 10] = [
        "not_converted",
        "unknown",
        "labels",
        "containerd",
        "contested",
        "foreign",
        "source",
        "late",
        "not_asked",
        "node",
    ];

    /// The class of this one.
    pub(crate) const fn class(&self) -> &'static str {
        match self {
            Self::NotConverted => "not_converted",
            Self::Unknown | Self::NoOrigin | Self::NoChain => "unknown",
            Self::Contradiction | Self::Labels(_) | Self::Location(_) => "labels",
            Self::Content(_) => "containerd",
            Self::Contested | Self::Ambiguous | Self::Unfit(_) => "contested",
            Self::Foreign { .. } => "foreign",
            Self::Plane(PlaneError::Failed(_)) => "source",
            Self::Late { .. } => "late",
            Self::NotAsked => "not_asked",
            Self::Plane(PlaneError::DiskFull(_))
            | Self::Parents(_)
            | Self::Store(_)
            | Self::Interrupted => "node",
        }
    }
}
