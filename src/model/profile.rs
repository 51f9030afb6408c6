//! Where the time of steps goes.

use std::cell::Cell;

use crate::os::clock;

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Embeddings and angles.
    Embed,
    /// Norms of the stream, and its sums.
    Norm,
    /// Activations to 8-bit codes.
    Codes,
    /// The first products of a mixer: queries, keys and values.
    Qkv,
    /// Norms and turns of heads, and the store of keys and values.
    Heads,
    /// Attention, or a recurrence.
    Attention,
    /// The product that ends a mixer.
    Output,
    /// The products with gate and up, and those of a router.
    GateUp,
    /// The activation function.
    Act,
    /// The product with down.
    Down,
    /// The output matrix.
    Head,
}

impl Op {
    /// Every one, in the order in which a step does them.
    pub const ALL: [Self; 11] = [
        Self::Embed,
        Self::Norm,
        Self::Codes,
        Self::Qkv,
        Self::Heads,
        Self::Attention,
        Self::Output,
        Self::GateUp,
        Self::Act,
        Self::Down,
        Self::Head,
    ];

    /// The name in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::Norm => "norm",
            Self::Codes => "codes",
            Self::Qkv => "qkv",
            Self::Heads => "heads",
            Self::Attention => "attention",
            Self::Output => "output",
            Self::GateUp => "gate_up",
            Self::Act => "act",
            Self::Down => "down",
            Self::Head => "head",
        }
    }
}

/// What an operation took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Nanoseconds.
    pub ns: u64,
    /// Bytes of weights, or of keys and values, that it had to read.
    pub bytes: u64,
    /// Multiplications with an addition.
    pub macs: u64,
}

/// Costs of operations since it began.
#[derive(Debug)]
pub struct Profile {
    last_ns: Cell<u64>,
    /// Read and multiplied since the last mark.
    pending: Cell<(u64, u64)>,
    costs: [Cell<Cost>; Op::ALL.len()],
}

impl Profile {
    pub(super) fn new() -> Self {
        Self {
            last_ns: Cell::new(clock::now_ns()),
            pending: Cell::default(),
            costs: std::array::from_fn(|_| Cell::default()),
        }
    }

    /// A step begins: what came before is nobody's.
    pub(super) fn begin(&self) {
        self.last_ns.set(clock::now_ns());
    }

    /// What `op` reads and multiplies.
    pub(super) fn add(&self, bytes: u64, macs: u64) {
        let (b, m) = self.pending.get();
        self.pending.set((b + bytes, m + macs));
    }

    /// `op` is done: the time since the last mark is its.
    pub(super) fn mark(&self, op: Op) {
        let now = clock::now_ns();
        let ns = now - self.last_ns.replace(now);
        let (bytes, macs) = self.pending.take();
        let cost = &self.costs[op as usize];
        let so_far = cost.get();
        cost.set(Cost { ns: so_far.ns + ns, bytes: so_far.bytes + bytes, macs: so_far.macs + macs });
    }

    /// What `op` took.
    #[must_use]
    pub fn cost(&self, op: Op) -> Cost {
        self.costs[op as usize].get()
    }

    /// What all took, in nanoseconds.
    #[must_use]
    pub fn total_ns(&self) -> u64 {
        self.costs.iter().map(|cost| cost.get().ns).sum()
    }
}
