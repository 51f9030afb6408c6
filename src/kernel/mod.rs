//! Layer 2: the arithmetic, tier by tier.
