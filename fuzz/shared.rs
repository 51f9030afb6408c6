//! What the fuzz targets share.

use sotto::format::Checkpoint;

/// Input in two pieces: what is before the first NUL, and what is after it.
#[must_use]
pub fn pieces(data: &[u8]) -> (&[u8], &[u8]) {
    match data.iter().position(|b| *b == 0) {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, &[]),
    }
}

/// Asks for every value in every way and for the bytes of every tensor.
///
/// # Panics
/// When a tensor that was read has other bytes than its type and shape need.
pub fn use_all(checkpoint: &Checkpoint) {
    for (key, value) in checkpoint.metadata() {
        let _ = value.describe();
        let _ = (checkpoint.uint(key), checkpoint.float(key), checkpoint.bool(key), checkpoint.str(key));
        let _ =
            (checkpoint.floats(key), checkpoint.small_ints(key), checkpoint.ints(key), checkpoint.bools(key));
        let _ = checkpoint.uint_per_layer(key, 4);
        if let Ok(Some(strings)) = checkpoint.strings(key) {
            (0..=strings.len()).for_each(|i| assert_eq!(strings.get(i).is_some(), i < strings.len()));
        }
    }
    for (name, info) in checkpoint.tensors() {
        let bytes = checkpoint.bytes(info).len();
        let row = info.quant.row_bytes(info.n_cols).expect("the reader checked the width");
        assert_eq!(bytes, row * info.n_rows, "{name}");
        assert_eq!(info.shape.iter().product::<usize>(), info.n_cols * info.n_rows, "{name}");
    }
}
