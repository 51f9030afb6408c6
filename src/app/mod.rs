//! Layer 7: the programs.
