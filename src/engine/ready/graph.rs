//! A model that a helper runs.

use std::time::Duration;

use super::{Drawn, Going, Stopped};
use crate::base::Token;
use crate::base::limits::ATTN_BLOCK;
use crate::engine::loaded::Loaded;
use crate::engine::manners::Need;
use crate::format::hf::onnx::GraphDir;
use crate::model::Part;
use crate::os::clock;
use crate::side::graph::{Graph, GraphError};

/// How long the helper is waited for between two looks at what came in.
const LOOK: Duration = Duration::from_millis(2);
/// How long it may take for a step: the longest texts of a large encoder take half a minute on a slow board.
const STEP_US: u64 = 120_000_000;
/// Bytes of the helper beside its weights.
const BESIDE: u64 = 32 << 20;

/// What `model` takes, of the graph in `dir`: floats are kept as they are, and again as products want them.
pub(super) fn need(model: &Loaded, dir: &GraphDir) -> Need {
    let one = model.n_ctx.div_ceil(ATTN_BLOCK);
    Need {
        weights: dir.bytes.saturating_mul(2),
        buffers: BESIDE,
        n_ctx: model.n_ctx,
        n_pages: (one, 2 * model.max_sequences * one),
        ..Need::default()
    }
}

/// A helper with its graph.
pub(super) struct Remote {
    graph: Graph,
    /// Answers that nobody waits for any more.
    n_owed: usize,
    /// It has answered.
    served: bool,
}

impl Remote {
    pub(super) fn new(graph: Graph) -> Self {
        Self { graph, n_owed: 0, served: false }
    }

    pub(super) fn resident_bytes(&self) -> u64 {
        self.graph.opened().resident_bytes
    }

    /// The vectors of whole texts. Where the helper refuses them it is asked for each alone, so that nobody's text fails for
    /// another's.
    pub(super) fn step(
        &mut self,
        going: &[Going<'_>],
        go_on: &mut dyn FnMut(Part) -> bool,
    ) -> Result<Vec<Drawn>, Stopped> {
        let since = clock::now_us();
        match self.vectors(going, since, go_on) {
            Err(Stopped::Lost(GraphError::Refused { .. })) => {}
            done => return done,
        }
        let mut all = Vec::with_capacity(going.len());
        for one in going {
            match self.vectors(std::slice::from_ref(one), since, go_on) {
                Ok(drawn) => all.extend(drawn),
                Err(Stopped::Lost(e @ GraphError::Refused { .. })) => all.push(Drawn::Refused(one.slot, e)),
                Err(other) => return Err(other),
            }
        }
        Ok(all)
    }

    fn vectors(
        &mut self,
        going: &[Going<'_>],
        since: u64,
        go_on: &mut dyn FnMut(Part) -> bool,
    ) -> Result<Vec<Drawn>, Stopped> {
        let texts: Vec<&[Token]> = going.iter().map(|g| g.tokens).collect();
        // One that has served before may have been ended meanwhile; one that never has would be started for ever.
        let gone = if self.served { Stopped::Again } else { Stopped::Lost };
        self.graph.embed(&texts).map_err(gone)?;
        self.n_owed += 1;
        loop {
            match self.graph.answer(LOOK).map_err(Stopped::Lost)? {
                Some(_) if self.n_owed > 1 => self.n_owed -= 1,
                Some(answer) => {
                    self.n_owed -= 1;
                    self.served = true;
                    let vectors = self.graph.vectors(&answer, going.len()).map_err(Stopped::Lost)?;
                    let of = |(g, vector): (&Going<'_>, _)| Drawn::Vector(g.slot, vector);
                    return Ok(going.iter().zip(vectors).map(of).collect());
                }
                None if clock::now_us().saturating_sub(since) > STEP_US => {
                    return Err(Stopped::Lost(GraphError::slow(STEP_US / 1_000_000)));
                }
                None if go_on(Part::Attention) => {}
                None => return Err(Stopped::Left),
            }
        }
    }
}
