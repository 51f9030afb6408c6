//! Making a model's weights ready, a slice at a time: packed, or read in as the file has them.

use std::sync::Arc;
use std::time::Duration;

use super::Options;
use super::loaded::{Body, Loaded};
use crate::kernel::Pool;
use crate::model::{Model, Pack, PackError, Packer};
use crate::os::clock;
use crate::side::graph::{Graph, GraphError, Open};

/// Bytes of a model that are read in between two looks at what came in: a tenth of a second.
const READ: usize = 64 << 20;
/// Bytes that are packed between them.
const PACKED: usize = 16 << 20;

/// How long a helper may take: so long, and a second for so many bytes. A graph of a gigabyte takes three seconds on a
/// machine of today.
const GRAPH_US: u64 = 20_000_000;
const GRAPH_BYTES: u64 = 10 << 20;

/// A model on its way into memory.
pub(super) enum Load {
    /// One of our own decoder.
    Own(Arc<Model>, Way),
    /// A helper opens its graph, since this moment, of so many bytes.
    Graph(Box<Graph>, u64, u64),
    /// There is none.
    Failed(GraphError),
}

/// How our own decoder comes to its weights.
pub(super) enum Way {
    /// Its matrices are packed.
    Pack(Box<Packer>),
    /// Its file is read in: bytes so far, and in all.
    Read(u64, u64),
    /// A mock lets time pass, from this moment on: bytes so far, and in all.
    Play(u64, u64, u64),
}

/// What a load ends with.
pub(super) enum Weights {
    /// For our own decoder.
    Own(Arc<Model>),
    /// In a helper.
    Graph(Box<Graph>),
}

impl Load {
    /// With so many threads, where a helper computes.
    pub(super) fn new(model: &Loaded, o: &Options, threads: usize) -> Self {
        match &model.body {
            Body::Own(own) => Self::Own(own.clone(), Way::new(model, own, o)),
            Body::Graph(dir) => {
                let open = Open { generates: dir.generates, pool: dir.pool, unit: dir.unit, threads };
                match Graph::start(&o.helper, &dir.graph, dir.first.as_deref(), &open) {
                    Ok(graph) => Self::Graph(Box::new(graph), clock::now_us(), dir.bytes),
                    Err(e) => Self::Failed(e),
                }
            }
        }
    }

    /// Bytes of the file that are through, and that are to be in all.
    pub(super) fn progress(&self) -> (u64, u64) {
        match self {
            Self::Own(_, Way::Pack(packer)) => packer.progress(),
            Self::Own(_, Way::Read(done, total) | Way::Play(_, done, total)) => (*done, *total),
            Self::Graph(_, _, total) => (0, *total),
            Self::Failed(_) => (0, 0),
        }
    }

    /// Whether somebody else works on it, whom nobody has to wait for.
    pub(super) fn is_elsewhere(&self) -> bool {
        matches!(self, Self::Graph(..))
    }

    /// How the helper ended that was at it.
    pub(super) fn lost(&self) -> Option<&GraphError> {
        match self {
            Self::Failed(e @ GraphError::Gone { .. }) => Some(e),
            _ => None,
        }
    }

    /// Works on the next slice; false when there is none.
    pub(super) fn work(&mut self, model: &Loaded, pool: &Pool) -> bool {
        match self {
            Self::Own(own, way) => way.work(model, own, pool),
            Self::Graph(graph, since, bytes) => match graph.open(Duration::ZERO) {
                Ok(Some(_)) => false,
                Ok(None) => {
                    let most = GRAPH_US + *bytes / GRAPH_BYTES * 1_000_000;
                    if clock::now_us().saturating_sub(*since) < most {
                        return true;
                    }
                    *self = Self::Failed(GraphError::Slow { s: most / 1_000_000 });
                    false
                }
                Err(e) => {
                    *self = Self::Failed(e);
                    false
                }
            },
            Self::Failed(_) => false,
        }
    }

    /// The model to run, of `model`, which was loaded, once there is no slice left.
    ///
    /// # Errors
    /// When a helper could not be had, or refuses its graph.
    pub(super) fn finish(self, model: &Loaded) -> Result<Weights, GraphError> {
        match self {
            Self::Own(own, Way::Pack(packer)) => Ok(Weights::Own(packed(*packer, model, &own))),
            Self::Own(own, Way::Read(..) | Way::Play(..)) => Ok(Weights::Own(own)),
            Self::Graph(graph, ..) => Ok(Weights::Graph(graph)),
            Self::Failed(e) => Err(e),
        }
    }
}

impl Way {
    fn new(model: &Loaded, own: &Arc<Model>, o: &Options) -> Self {
        if model.play.is_some() {
            return Self::Play(clock::now_us(), 0, own.file_bytes());
        }
        // What is packed already is read as it is, and so is what would only be slower packed.
        match o.pack {
            _ if own.checkpoint().is_packed() => Self::read(own),
            Pack::Off => Self::read(own),
            Pack::Memory => Self::memory(model, own),
            Pack::Cache => {
                let cache = o.cache.as_ref().ok_or(PackError::NoCache);
                match cache.and_then(|cache| cache.packer(own, &model.path)) {
                    Ok(packer) => Self::Pack(Box::new(packer)),
                    Err(e) => Self::instead(model, own, &e),
                }
            }
        }
    }

    fn read(own: &Model) -> Self {
        Self::Read(0, own.file_bytes())
    }

    /// Packs into memory, if there is something to pack and room.
    fn memory(model: &Loaded, own: &Arc<Model>) -> Self {
        match Packer::memory(own) {
            Ok(packer) => Self::Pack(Box::new(packer)),
            Err(PackError::Nothing { .. }) => Self::read(own),
            Err(e) => {
                log::info!("model {}: weights are read as the file has them: {e}", model.id);
                Self::read(own)
            }
        }
    }

    /// The same, because there is no packed file.
    fn instead(model: &Loaded, own: &Arc<Model>, why: &PackError) -> Self {
        if !matches!(why, PackError::Nothing { .. } | PackError::Directory { .. }) {
            log::info!("model {}: is not packed into a file: {why}", model.id);
        }
        Self::memory(model, own)
    }

    /// As [`Load::work`].
    fn work(&mut self, model: &Loaded, own: &Arc<Model>, pool: &Pool) -> bool {
        match self {
            Self::Pack(packer) => match packer.work(pool, PACKED) {
                Ok(more) => more,
                Err(e) => {
                    *self = Self::instead(model, own, &e);
                    true
                }
            },
            Self::Read(done, total) if *done < *total => {
                let n = (*total - *done).min(READ as u64);
                // The file is mapped, so its offsets are addresses.
                own.populate(*done as usize, n as usize);
                *done += n;
                true
            }
            Self::Play(since, done, total) if *done < *total => {
                *done = model.play.as_ref().map_or(*total, |play| play.load(*since, *total));
                true
            }
            Self::Read(..) | Self::Play(..) => false,
        }
    }
}

/// Of what was packed.
fn packed(packer: Packer, model: &Loaded, own: &Arc<Model>) -> Arc<Model> {
    let packed = packer.finish().map(Arc::new).and_then(|checkpoint| {
        let model = Model::new(checkpoint.clone())?;
        // Its norms were copied, each of which can have brought in a large page.
        checkpoint.forget_all();
        Ok(model)
    });
    packed.map(Arc::new).unwrap_or_else(|e| {
        log::warn!("model {}: weights are read as the file has them: {e}", model.id);
        own.clone()
    })
}
