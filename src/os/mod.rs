//! Layer 1: every syscall that is not behind another library.

pub mod clock;
pub mod file;
pub mod interrupt;
pub mod map;
pub mod pages;
pub mod process;
pub mod socket;
pub mod thermal;
pub mod thread;
pub mod user;
