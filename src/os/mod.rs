//! Layer 1: every syscall that is not behind another library.

pub mod cgroup;
pub mod clock;
pub mod cpus;
pub mod file;
pub mod interrupt;
pub mod map;
pub mod memory;
pub mod message;
pub mod pages;
pub mod pressure;
pub mod process;
pub mod socket;
pub mod thermal;
pub mod thread;
pub mod timer;
pub mod tree;
pub mod user;
