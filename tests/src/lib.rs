//! End-to-end, conformance and interoperability tests on real containerd and registries.
