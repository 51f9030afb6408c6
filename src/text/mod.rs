//! Layer 2: text to tokens and back.
