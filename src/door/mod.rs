//! Layer 6: the ways in.
