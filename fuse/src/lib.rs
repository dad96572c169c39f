//! The data plane: store, fetcher, FUSE session, EROFS and overlay mounts.
