//! Layer 2: bytes of files become named tensors and metadata.
