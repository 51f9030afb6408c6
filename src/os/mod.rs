//! Layer 1: every syscall.
