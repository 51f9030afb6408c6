//! Layer 3: logits to a token.
