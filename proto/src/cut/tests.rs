//! Cutting.
