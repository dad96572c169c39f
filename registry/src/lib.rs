//! The OCI distribution client Larder uses.
