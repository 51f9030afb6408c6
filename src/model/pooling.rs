//! From the states of a text's tokens to one vector.

use super::ModelError;
use super::hyper::Keys;

/// Which of a text's states become its vector; all are taken after the last norm. The numbers are those of GGUF's
/// `pooling_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The mean of all (1, and where the file says nothing).
    Mean,
    /// That of the first token (2).
    First,
    /// That of the last one (3).
    Last,
}

/// What a file says: `None` for a model that ranks texts and makes no vectors.
///
/// # Errors
/// When it is a number that means nothing.
pub(super) fn read(keys: Keys<'_>) -> Result<Option<Pooling>, ModelError> {
    match keys.file.uint(&keys.name("pooling_type"))? {
        None | Some(0 | 1) => Ok(Some(Pooling::Mean)),
        Some(2) => Ok(Some(Pooling::First)),
        Some(3) => Ok(Some(Pooling::Last)),
        Some(4) => Ok(None),
        Some(other) => Err(keys.bad(
            "pooling_type",
            other,
            "0 (none), 1 (mean), 2 (first), 3 (last), 4 (rank) are known",
        )),
    }
}

/// The vector of a text, so far.
#[derive(Clone, Debug)]
pub struct Pooled {
    how: Pooling,
    sum: Vec<f32>,
    n: usize,
}

impl Pooled {
    /// Of a text of which nothing was read; its states have `n_embd` numbers.
    #[must_use]
    pub fn new(how: Pooling, n_embd: usize) -> Self {
        Self { how, sum: vec![0.0; n_embd], n: 0 }
    }

    /// Which of the next `n` tokens matter.
    pub(super) fn rows(&self, n: usize) -> std::ops::Range<usize> {
        match self.how {
            Pooling::Mean => 0..n,
            Pooling::First => 0..n.min(usize::from(self.n == 0)),
            Pooling::Last => n.saturating_sub(1)..n,
        }
    }

    /// Takes the states of those, `[rows, n_embd]`, one after the other, so that it does not matter how a text was cut.
    pub(super) fn take(&mut self, states: &[f32]) {
        for state in states.chunks_exact(self.sum.len()) {
            if self.how == Pooling::Last {
                self.sum.fill(0.0);
            }
            self.sum.iter_mut().zip(state).for_each(|(sum, x)| *sum += x);
            self.n += 1;
        }
    }

    /// The vector, `n_embd` numbers.
    #[must_use]
    pub fn finish(mut self) -> Vec<f32> {
        if self.how == Pooling::Mean {
            let n = self.n.max(1) as f32;
            self.sum.iter_mut().for_each(|x| *x /= n);
        }
        self.sum
    }
}
