//! Generated messages and services: containerd's snapshots service and our control socket.
//!
//! The definitions, with a comment on each field, are in `proto/proto/*.proto`. The modules keep
//! the nesting of the proto packages, because generated code names its neighbours by it.

/// containerd's own packages.
#[expect(
    clippy::allow_attributes,
    clippy::default_trait_access,
    clippy::too_many_lines,
    reason = "generated code"
)]
pub mod containerd {
    /// Package `containerd.types`.
    pub mod types {
        tonic::include_proto!("containerd.types");
    }
    /// containerd's services.
    pub mod services {
        /// The snapshots service.
        pub mod snapshots {
            /// Package `containerd.services.snapshots.v1`.
            pub mod v1 {
                tonic::include_proto!("containerd.services.snapshots.v1");
            }
        }
    }
}

/// Package `larder.control.v1`.
#[expect(
    clippy::allow_attributes,
    clippy::default_trait_access,
    clippy::too_many_lines,
    reason = "generated code"
)]
pub mod control {
    tonic::include_proto!("larder.control.v1");
}

pub use containerd::services::snapshots::v1 as snapshots;
pub use containerd::types::Mount;
