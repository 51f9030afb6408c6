//! Layer 3: the decoder.
