//! A timer of the kernel's. One of tokio's sleeps on its way to a far moment some times more, to sort what is near.

use std::io;
use std::time::Duration;

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use tokio::io::unix::AsyncFd;

/// A timer; made and waited for within a runtime.
#[derive(Debug)]
pub struct Timer(AsyncFd<std::os::fd::OwnedFd>);

impl Timer {
    /// One that is not set.
    ///
    /// # Errors
    /// When the system has none to give.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        // SAFETY: it owns its descriptor, which is neither closed nor exchanged before it is dropped.
        Ok(Self(unsafe { AsyncFd::register(timer) }?))
    }

    /// Waits for so long; who no longer waits for it may wait anew.
    ///
    /// # Errors
    /// When the system refuses.
    pub async fn wait(&self, time: Duration) -> io::Result<()> {
        // Zero would be no time, but none at all.
        let time = time.max(Duration::from_nanos(1));
        let it_value = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) };
        let once = Itimerspec { it_interval: Timespec::default(), it_value };
        rustix::time::timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once)?;
        loop {
            let mut ready = self.0.readable().await?;
            let mut n_over = [0; 8];
            if let Ok(read) = ready.try_io(|fd| Ok(rustix::io::read(fd, &mut n_over)?)) {
                return read.map(drop);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::clock;

    #[test]
    fn it_is_over_in_time() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let timer = Timer::new().unwrap();
            let began = clock::now_us();
            timer.wait(Duration::ZERO).await.unwrap();
            // Given up, and set anew.
            tokio::select! {
                biased;
                _ = timer.wait(Duration::from_secs(100)) => panic!("far too early"),
                () = std::future::ready(()) => {}
            }
            timer.wait(Duration::from_millis(20)).await.unwrap();
            let took = clock::now_us() - began;
            assert!((20_000..10_000_000).contains(&took), "{took} us");
        });
    }
}
