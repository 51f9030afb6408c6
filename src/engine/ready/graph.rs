//! A model that a helper runs.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::{Drawn, Going, Sample, Stopped, What};
use crate::base::Token;
use crate::base::limits::ATTN_BLOCK;
use crate::engine::loaded::Loaded;
use crate::engine::manners::Need;
use crate::format::hf::onnx::GraphDir;
use crate::model::Part;
use crate::os::clock;
use crate::os::message::Frame;
use crate::side::graph::{Graph, GraphError};

/// How long the helper is waited for between two looks at what came in.
const LOOK: Duration = Duration::from_millis(2);
/// How long it may take for a step, and for each of its tokens: four texts of 512 tokens of a large encoder take two minutes on
/// a slow board. Nothing else is computed meanwhile.
const STEP_US: u64 = 20_000_000;
const TOKEN_US: u64 = 100_000;
/// Bytes of the helper beside its weights.
const BESIDE: u64 = 32 << 20;

/// What `model` takes, of the graph in `dir`: floats are kept as they are, and again as products want them.
pub(super) fn need(model: &Loaded, dir: &GraphDir) -> Need {
    let one = model.n_ctx.div_ceil(ATTN_BLOCK);
    let page = dir.token_bytes.saturating_mul(ATTN_BLOCK as u64);
    let sequence = page.saturating_mul(one as u64);
    Need {
        weights: dir.bytes.saturating_mul(2),
        // A step makes what a sequence keeps anew, and then lets go of the old.
        buffers: BESIDE.saturating_add(sequence),
        sequence,
        n_ctx: model.n_ctx,
        page,
        n_pages: (one, 2 * model.max_sequences * one),
        ..Need::default()
    }
}

/// A text in the helper.
pub(in crate::engine) struct Sequence {
    id: u32,
    /// Tokens that it has.
    pub(super) n: usize,
    /// It is let go of there when this is.
    _kept: Arc<()>,
}

/// A helper with its graph.
pub(super) struct Remote {
    graph: Graph,
    next_id: u32,
    /// Texts that the helper was told of.
    known: Vec<(u32, Weak<()>)>,
    /// Answers that nobody waits for any more.
    n_owed: usize,
    /// It has answered.
    served: bool,
}

impl Remote {
    pub(super) fn new(graph: Graph) -> Self {
        Self { graph, next_id: 0, known: Vec::new(), n_owed: 0, served: false }
    }

    /// Whether it makes vectors of texts; else it continues them.
    fn embeds(&self) -> bool {
        self.graph.opened().n_embd > 0
    }

    /// Whether texts are to be read at once.
    pub(super) fn reads_whole(&self) -> bool {
        !self.graph.opened().in_parts
    }

    /// A text, which has nothing yet.
    pub(super) fn begin(&mut self) -> Sequence {
        let (id, kept) = (self.next_id, Arc::new(()));
        self.next_id = id.wrapping_add(1);
        self.known.push((id, Arc::downgrade(&kept)));
        Sequence { id, n: 0, _kept: kept }
    }

    /// Has the helper let go of texts that nobody has any more. One that is gone has let go of all.
    pub(super) fn tidy(&mut self) {
        let gone: Vec<u32> =
            self.known.iter().filter(|(_, kept)| kept.strong_count() == 0).map(|(id, _)| *id).collect();
        if !gone.is_empty() {
            self.known.retain(|(id, _)| !gone.contains(id));
            if !self.embeds() {
                let _ = self.graph.end(&gone);
            }
        }
    }

    pub(super) fn resident_bytes(&self) -> u64 {
        self.graph.opened().resident_bytes
    }

    /// Does a step, and draws.
    pub(super) fn step(
        &mut self,
        going: &mut [Going<'_>],
        sample: &mut Sample<'_>,
        go_on: &mut dyn FnMut(Part) -> bool,
    ) -> Result<Vec<Drawn>, Stopped> {
        match self.embeds() {
            true => self.read_whole(going, go_on),
            false => self.go_on_with(going, sample, go_on),
        }
    }

    /// Takes texts on, one after the other. What the helper refuses is one text's own affair.
    fn go_on_with(
        &mut self,
        going: &mut [Going<'_>],
        sample: &mut Sample<'_>,
        go_on: &mut dyn FnMut(Part) -> bool,
    ) -> Result<Vec<Drawn>, Stopped> {
        let mut all = Vec::with_capacity(going.len());
        for g in going {
            let What::Graph(sequence) = &mut g.kept.what else { continue };
            let sent = self.graph.step(sequence.id, sequence.n, g.tokens, g.draws);
            sent.map_err(|e| self.gone(e))?;
            let answer = self.answer(g.tokens.len(), go_on)?;
            match self.graph.logits(&answer, g.draws) {
                Ok(_) if !g.draws => {}
                Ok(logits) => all.extend(sample(g.slot, &logits).map(|token| Drawn::Token(g.slot, token))),
                Err(e @ GraphError::Refused { .. }) => all.push(Drawn::Refused(g.slot, e)),
                Err(e) => return Err(Stopped::Lost(e)),
            }
            sequence.n += g.tokens.len();
        }
        Ok(all)
    }

    /// The vectors of whole texts. Where the helper refuses them it is asked for each alone, so that nobody's text fails for
    /// another's.
    fn read_whole(
        &mut self,
        going: &[Going<'_>],
        go_on: &mut dyn FnMut(Part) -> bool,
    ) -> Result<Vec<Drawn>, Stopped> {
        match self.vectors(going, go_on) {
            Err(Stopped::Lost(GraphError::Refused { .. })) => {}
            done => return done,
        }
        let mut all = Vec::with_capacity(going.len());
        for one in going {
            match self.vectors(std::slice::from_ref(one), go_on) {
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
        go_on: &mut dyn FnMut(Part) -> bool,
    ) -> Result<Vec<Drawn>, Stopped> {
        let texts: Vec<&[Token]> = going.iter().map(|g| g.tokens).collect();
        self.graph.embed(&texts).map_err(|e| self.gone(e))?;
        let answer = self.answer(texts.iter().map(|text| text.len()).sum(), go_on)?;
        let vectors = self.graph.vectors(&answer, going.len()).map_err(Stopped::Lost)?;
        let of = |(g, vector): (&Going<'_>, _)| Drawn::Vector(g.slot, vector);
        Ok(going.iter().zip(vectors).map(of).collect())
    }

    /// It says nothing more. One that has served before may have been ended for no fault of what it was asked, which is asked
    /// again of the next one; one that never has would be started for ever.
    fn gone(&self, e: GraphError) -> Stopped {
        match e {
            GraphError::Gone { .. } if self.served => Stopped::Again(e),
            _ => Stopped::Lost(e),
        }
    }

    /// The answer to what was just asked, about so many tokens.
    fn answer(&mut self, n: usize, go_on: &mut dyn FnMut(Part) -> bool) -> Result<Frame, Stopped> {
        let (since, most) = (clock::now_us(), STEP_US + n as u64 * TOKEN_US);
        self.n_owed += 1;
        loop {
            match self.graph.answer(LOOK).map_err(|e| self.gone(e))? {
                Some(_) if self.n_owed > 1 => self.n_owed -= 1,
                Some(answer) => {
                    self.n_owed -= 1;
                    self.served = true;
                    return Ok(answer);
                }
                None if clock::now_us().saturating_sub(since) > most => {
                    return Err(Stopped::Lost(GraphError::slow(most / 1_000_000)));
                }
                None if go_on(Part::Attention) => {}
                None => return Err(Stopped::Left),
            }
        }
    }
}
