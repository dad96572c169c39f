//! Places where tests kill the process; see the data plane, which has some, too.

pub(crate) use larder_fuse::failpoint;
