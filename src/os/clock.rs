//! The one place that reads a clock; everything below the edges is told the time.

/// Microseconds of the monotonic clock.
#[must_use]
pub fn now_us() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    t.tv_sec.cast_unsigned() * 1_000_000 + t.tv_nsec.cast_unsigned() / 1_000
}

/// Nanoseconds of the monotonic clock.
#[must_use]
pub fn now_ns() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    t.tv_sec.cast_unsigned() * 1_000_000_000 + t.tv_nsec.cast_unsigned()
}

/// Seconds since 1970.
#[must_use]
pub fn unix_s() -> u64 {
    rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec.cast_unsigned()
}

/// 128 random bits from the kernel.
///
/// # Errors
/// When the kernel gives none.
pub fn random_bits() -> std::io::Result<u128> {
    let mut bytes = [0_u8; 16];
    let n = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    if n == bytes.len() {
        Ok(u128::from_le_bytes(bytes))
    } else {
        Err(std::io::ErrorKind::UnexpectedEof.into())
    }
}
