//! What counts as a difference between trees.
