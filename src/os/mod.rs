//! Layer 1: every syscall. What is above asks here and never asks the system itself.

pub mod map;
