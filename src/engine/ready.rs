//! A loaded model with what its sequences share. Our own decoder's are buffers, memory and beginnings ([`own`]); a helper's
//! are its own affair ([`graph`]).

mod graph;
mod own;

use std::sync::Arc;

use self::graph::Remote;
use self::own::Own;
use super::generation::Generation;
use super::load::Weights;
use super::loaded::{Body, Loaded, load_fault};
use super::manners::{Given, Need};
use super::prefix::NodeId;
use super::scheduler::{Capacity, ModelKey, Slot};
use super::{Code, Fault, ModelMetrics, Options};
use crate::base::Token;
use crate::kernel::Pool;
use crate::model::{Kv, Part, Pooled};
use crate::side::graph::GraphError;

/// A model that runs.
pub(super) struct Ready {
    pub model: Arc<Loaded>,
    pub metrics: Arc<ModelMetrics>,
    pub capacity: Capacity,
    runs: Runs,
}

/// Who computes.
enum Runs {
    Own(Box<Own>),
    Graph(Box<Remote>),
}

/// What a sequence keeps.
pub(super) struct Kept {
    pub model: ModelKey,
    what: What,
}

enum What {
    Own {
        kv: Kv,
        /// The block of the prefix cache that it began with.
        pin: Option<NodeId>,
        /// The vector that its input becomes, so far.
        pooled: Option<Pooled>,
    },
    /// The rest is in a helper.
    Graph(graph::Sequence),
}

/// What a sequence brings to a step, with what it keeps.
pub(super) struct Going<'t> {
    pub slot: Slot,
    pub kept: Kept,
    pub tokens: &'t [Token],
    /// A token, or a vector, comes of it.
    pub draws: bool,
    /// A helper is asked for it by itself: it was in what one ended at.
    pub alone: bool,
}

/// Draws a token of logits; `None` for who is gone, no token where no logit is finite.
type Sample<'s> = dyn FnMut(Slot, &[f32]) -> Option<Option<Token>> + 's;

/// What came of a step, of each that draws.
pub(super) enum Drawn {
    /// A token; none where no logit is finite.
    Token(Slot, Option<Token>),
    Vector(Slot, Vec<f32>),
    /// The helper refuses its text.
    Refused(Slot, GraphError),
}

/// Why nothing came of a step.
pub(super) enum Stopped {
    /// Nobody wants it any more.
    Left,
    /// A helper is at it still, which need not be waited for: the same is to be asked again.
    Aside,
    /// The helper is gone, takes too long, or does not answer as it should.
    Lost(Loss),
}

/// How far a helper was when it was lost.
pub(super) struct Loss {
    pub e: GraphError,
    /// What has come of the step before.
    pub drawn: Vec<Drawn>,
    /// Of those in the step, the first that are through, and those after them that it was at.
    pub through: usize,
    pub asked: usize,
    /// What it was at may be asked of another one.
    pub again: bool,
}

impl Kept {
    /// Tokens that it has.
    pub(super) fn len(&self) -> usize {
        match &self.what {
            What::Own { kv, .. } => kv.len(),
            What::Graph(sequence) => sequence.n,
        }
    }

    /// Makes room for `n` tokens more.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn reserve(&mut self, n: usize) -> Result<(), crate::model::ModelError> {
        match &mut self.what {
            What::Own { kv, .. } => kv.reserve(n),
            What::Graph(_) => Ok(()),
        }
    }

    /// Lets go of all but the block of the prefix cache that it began with.
    pub(super) fn into_pin(self) -> Option<NodeId> {
        match self.what {
            What::Own { pin, .. } => pin,
            What::Graph(_) => None,
        }
    }
}

/// What `model` takes, if it is to keep `prefix` bytes of beginnings.
pub(super) fn need(model: &Loaded, o: &Options, prefix: u64) -> Need {
    match &model.body {
        Body::Own(weights) => own::need(model, weights, o, prefix),
        Body::Graph(dir) => graph::need(model, dir),
    }
}

impl Ready {
    /// Makes `model` ready, within what it is `given`.
    ///
    /// # Errors
    /// When it has too few positions, or there is no memory for its longest sequence.
    pub(super) fn new(
        model: Arc<Loaded>,
        weights: Weights,
        pool: &Pool,
        o: &Options,
        (given, metrics): (Given, Arc<ModelMetrics>),
    ) -> Result<Self, Fault> {
        let (runs, capacity) = match weights {
            Weights::Own(weights) => {
                let own = Own::new(&model, weights, pool, o, given).map_err(|e| load_fault(&model.id, &e))?;
                let capacity = own.capacity();
                (Runs::Own(Box::new(own)), capacity)
            }
            Weights::Graph(graph) => {
                let (found, wanted) = (graph.opened().n_vocab, model.tokenizer.n_vocab());
                if model.generates() && found < wanted {
                    let what = format!(
                        "model {}: its graph gives {found} logits, its tokenizer.json has {wanted} tokens; get the files \
                         of one model",
                        model.id
                    );
                    return Err(Fault::new(Code::LoadFailed, what));
                }
                let remote = Remote::new(*graph);
                let (n_pages, whole) = (given.n_pages, remote.reads_whole());
                (Runs::Graph(Box::new(remote)), Capacity { n_pages, at_pages: false, whole })
            }
        };
        Ok(Self { model, metrics, capacity, runs })
    }

    /// How its weights are, in words.
    pub(super) fn how(&self) -> &'static str {
        match &self.runs {
            Runs::Own(own) if own.is_packed() => "packed",
            Runs::Own(_) => "as in the file",
            Runs::Graph(_) => "in a helper",
        }
    }

    /// What a sequence begins with, as much of it as an earlier one left.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub(super) fn begin(&mut self, job: &Generation) -> Result<Kept, Fault> {
        let what = match &mut self.runs {
            Runs::Own(own) => own.begin(job).map_err(|e| load_fault(&self.model.id, &e))?,
            Runs::Graph(remote) => What::Graph(remote.begin()),
        };
        Ok(Kept { model: self.model.key, what })
    }

    /// Takes sequences on by what each brings. `go_on` is asked before each part of the work.
    ///
    /// # Errors
    /// When nothing came of it.
    pub(super) fn step(
        &mut self,
        pool: &Pool,
        going: &mut [Going<'_>],
        sample: &mut Sample<'_>,
        go_on: &mut dyn FnMut(Part) -> bool,
    ) -> Result<Vec<Drawn>, Stopped> {
        match &mut self.runs {
            Runs::Own(own) => own.step(&self.model, pool, going, sample, go_on).ok_or(Stopped::Left),
            Runs::Graph(remote) => remote.step(going, sample, go_on),
        }
    }

    /// Leaves for later requests what a sequence has come to keep in whole blocks by its last `n` tokens.
    pub(super) fn keep_beginning(&mut self, job: &Generation, kept: &Kept, n: usize) {
        if let (Runs::Own(own), What::Own { kv, .. }) = (&mut self.runs, &kept.what) {
            own.keep_beginning(job, kv, n);
        }
    }

    /// Lets go of what nobody keeps any more, where that does not go by itself.
    pub(super) fn tidy(&mut self) {
        if let Runs::Graph(remote) = &mut self.runs {
            remote.tidy();
        }
    }

    /// A sequence that began with this block of the prefix cache is gone.
    pub(super) fn unpin(&mut self, pin: NodeId) {
        if let Runs::Own(own) = &mut self.runs {
            own.prefix.unpin(pin);
        }
    }

    /// Is to keep at most `bytes` of beginnings, as far as memory allowed them at its load; `yes`: from now on.
    pub(super) fn set_prefix_cache(&mut self, bytes: u64, yes: bool) {
        if let Runs::Own(own) = &mut self.runs {
            own.set_prefix_cache(bytes);
        }
        self.keep_beginnings(yes);
    }

    /// Keeps beginnings for later requests, or none any more.
    pub(super) fn keep_beginnings(&mut self, yes: bool) {
        if let Runs::Own(own) = &mut self.runs {
            own.keep_beginnings(yes);
        }
        self.tell();
    }

    /// What a helper has of it in its memory; `None` for what runs here.
    pub(super) fn weight_bytes(&self) -> Option<u64> {
        match &self.runs {
            Runs::Own(_) => None,
            Runs::Graph(remote) => Some(remote.resident_bytes()),
        }
    }

    /// Bytes of the system's free memory that it has taken: what is mapped from a file is not among them.
    pub(super) fn own_bytes(&self) -> u64 {
        match &self.runs {
            Runs::Own(own) => own.own_bytes(),
            Runs::Graph(remote) => remote.resident_bytes(),
        }
    }

    /// Bytes that it needs as long as it stays: what it keeps, and at least one sequence.
    pub(super) fn needed_bytes(&self) -> u64 {
        match &self.runs {
            Runs::Own(own) => own.needed_bytes(),
            Runs::Graph(remote) => remote.resident_bytes(),
        }
    }

    /// Keeps its weights in memory, whatever else wants it.
    pub(super) fn lock(&self) {
        if let Runs::Own(own) = &self.runs {
            own.lock(&self.model.id);
        }
    }

    /// Tells how much it keeps.
    pub(super) fn tell(&self) {
        if let Runs::Own(own) = &self.runs {
            self.metrics.kv_bytes.set(own.budget.used());
            self.metrics.prefix_bytes.set(own.prefix.bytes());
        }
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        for bytes in [&self.metrics.weight_bytes, &self.metrics.kv_bytes, &self.metrics.prefix_bytes] {
            bytes.set(0);
        }
    }
}
