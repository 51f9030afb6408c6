//! A model that a helper runs.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::{Drawn, Going, Kept, Loss, Sample, Stopped, What};
use crate::base::limits::ATTN_BLOCK;
use crate::engine::loaded::Loaded;
use crate::engine::manners::Need;
use crate::format::hf::onnx::GraphDir;
use crate::model::Part;
use crate::os::clock;
use crate::os::message::Frame;
use crate::side::graph::{Graph, GraphError};

/// How long the helper is waited for between two looks at what came in, and how long all wait for it: from then on only who
/// wants this model does.
const LOOK: Duration = Duration::from_millis(2);
const HOLD_US: u64 = 100_000;
/// How long it may take for a request of it, and for each token: four texts of 512 tokens of a large encoder take two minutes
/// on a slow board.
const ASK_US: u64 = 20_000_000;
const TOKEN_US: u64 = 100_000;
/// Bytes of the helper beside its weights.
const BESIDE: u64 = 32 << 20;

/// What `model` takes, of the graph in `dir`.
pub(super) fn need(model: &Loaded, dir: &GraphDir) -> Need {
    let one = model.n_ctx.div_ceil(ATTN_BLOCK);
    let page = dir.token_bytes.saturating_mul(ATTN_BLOCK as u64);
    let sequence = page.saturating_mul(one as u64);
    Need {
        weights: dir.weights_bytes(),
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
    /// The step that it is at.
    at: Option<At>,
}

/// How far a step is.
#[derive(Default)]
struct At {
    /// Of its texts, those that are through: the next one is asked for.
    n: usize,
    /// What the helper was asked.
    asked: Option<Asked>,
    /// It refused the texts together: each is asked for alone.
    alone: bool,
    /// What has come of it.
    drawn: Vec<Drawn>,
}

/// What a helper was asked.
#[derive(Clone, Copy)]
struct Asked {
    /// For so many texts.
    n: usize,
    /// When, and how long it may take.
    since: u64,
    most: u64,
}

impl Remote {
    pub(super) fn new(graph: Graph) -> Self {
        Self { graph, next_id: 0, known: Vec::new(), at: None }
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

    /// Has the helper let go of texts that nobody has any more, unless it is at something. One that is gone has let go of all.
    pub(super) fn tidy(&mut self) {
        if self.at.is_some() {
            return;
        }
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

    /// Does a step, and draws. Where it returns [`Stopped::Aside`] the same is to be called again, for what is left of it.
    pub(super) fn step(
        &mut self,
        going: &mut [Going<'_>],
        sample: &mut Sample<'_>,
        go_on: &mut dyn FnMut(Part) -> bool,
    ) -> Result<Vec<Drawn>, Stopped> {
        // What is left of a step that was set aside is looked at, and not waited for.
        let until = if self.at.is_some() { 0 } else { clock::now_us() + HOLD_US };
        let mut at = self.at.take().unwrap_or_default();
        while at.n < going.len() {
            let n = match at.asked {
                Some(asked) => asked.n,
                None if at.alone || !self.embeds() => 1,
                None => going.iter().skip(at.n).take_while(|text| !text.alone).count().max(1),
            };
            let texts = going.get_mut(at.n..at.n + n).unwrap_or_default();
            let wait = if until == 0 { Duration::ZERO } else { LOOK };
            match self.work(texts, sample, &mut at, wait) {
                Ok(true) => {}
                // What it is at can't be taken back, whoever has left.
                Ok(false) if clock::now_us() >= until || !go_on(Part::Attention) => {
                    self.at = Some(at);
                    return Err(Stopped::Aside);
                }
                Ok(false) => {}
                Err(e) => {
                    let again = matches!(e, GraphError::Gone { .. });
                    return Err(Stopped::Lost(Loss { e, drawn: at.drawn, through: at.n, asked: n, again }));
                }
            }
        }
        Ok(at.drawn)
    }

    /// Asks for what becomes of `texts`, or takes the answer; false if there is none after `wait`.
    fn work(
        &mut self,
        texts: &mut [Going<'_>],
        sample: &mut Sample<'_>,
        at: &mut At,
        wait: Duration,
    ) -> Result<bool, GraphError> {
        let Some(Asked { since, most, .. }) = at.asked else {
            let n_tokens: usize = texts.iter().map(|text| text.tokens.len()).sum();
            self.ask(texts)?;
            let (since, most) = (clock::now_us(), ASK_US + n_tokens as u64 * TOKEN_US);
            at.asked = Some(Asked { n: texts.len(), since, most });
            return Ok(true);
        };
        match self.graph.answer(wait)? {
            Some(answer) => {
                at.asked = None;
                self.take(&answer, texts, sample, at)?;
                Ok(true)
            }
            None if clock::now_us().saturating_sub(since) > most => {
                Err(GraphError::Slow { s: most / 1_000_000 })
            }
            None => Ok(false),
        }
    }

    /// Asks for the vectors of texts, or takes one on.
    fn ask(&mut self, texts: &[Going<'_>]) -> Result<(), GraphError> {
        match texts {
            [Going { kept: Kept { what: What::Graph(sequence), .. }, tokens, draws, .. }]
                if !self.embeds() =>
            {
                self.graph.step(sequence.id, sequence.n, tokens, *draws)
            }
            texts => self.graph.embed(&texts.iter().map(|text| text.tokens).collect::<Vec<_>>()),
        }
    }

    /// Takes the answer to what was asked of `texts`. What the helper refuses is one text's own affair.
    fn take(
        &self,
        answer: &Frame,
        texts: &mut [Going<'_>],
        sample: &mut Sample<'_>,
        at: &mut At,
    ) -> Result<(), GraphError> {
        let n = texts.len();
        match texts {
            [Going { slot, kept: Kept { what: What::Graph(sequence), .. }, tokens, draws, .. }]
                if !self.embeds() =>
            {
                sequence.n += tokens.len();
                match self.graph.logits(answer, *draws) {
                    Ok(_) if !*draws => {}
                    Ok(logits) => {
                        at.drawn.extend(sample(*slot, &logits).map(|token| Drawn::Token(*slot, token)));
                    }
                    Err(e @ GraphError::Refused { .. }) => at.drawn.push(Drawn::Refused(*slot, e)),
                    Err(e) => return Err(e),
                }
            }
            texts => match (self.graph.vectors(answer, n), &*texts) {
                (Ok(vectors), texts) => {
                    let of = |(g, vector): (&Going<'_>, _)| Drawn::Vector(g.slot, vector);
                    at.drawn.extend(texts.iter().zip(vectors).map(of));
                }
                (Err(e @ GraphError::Refused { .. }), [one]) => at.drawn.push(Drawn::Refused(one.slot, e)),
                // Nobody's text fails for another's.
                (Err(GraphError::Refused { .. }), _) => {
                    at.alone = true;
                    return Ok(());
                }
                (Err(e), _) => return Err(e),
            },
        }
        at.n += n;
        Ok(())
    }
}
