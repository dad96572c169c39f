//! The containerd proxy snapshotter.
