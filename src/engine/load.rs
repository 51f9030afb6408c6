//! Making a model's weights ready, a slice at a time: packed, or read in as the file has them.

use std::sync::Arc;

use super::loaded::Loaded;
use crate::kernel::Pool;
use crate::model::{Cache, Model, Pack, PackError, Packer};
use crate::os::clock;

/// Bytes of a model that are read in between two looks at what came in: a tenth of a second.
const READ: usize = 64 << 20;
/// Bytes that are packed between them.
const PACKED: usize = 16 << 20;

/// A model on its way into memory.
pub(super) enum Load {
    /// Its matrices are packed.
    Pack(Box<Packer>),
    /// Its file is read in: bytes so far, and in all.
    Read(u64, u64),
    /// A mock lets time pass, from this moment on: bytes so far, and in all.
    Play(u64, u64, u64),
}

impl Load {
    pub(super) fn new(model: &Loaded, pack: Pack, cache: Option<&Cache>) -> Self {
        if model.play.is_some() {
            return Self::Play(clock::now_us(), 0, model.model.file_bytes());
        }
        // What is packed already is read as it is, and so is what would only be slower packed.
        match pack {
            _ if model.model.checkpoint().is_packed() => Self::read(model),
            Pack::Off => Self::read(model),
            Pack::Memory => Self::memory(model),
            Pack::Cache => {
                let cache = cache.ok_or(PackError::NoCache);
                match cache.and_then(|cache| cache.packer(&model.model, &model.path)) {
                    Ok(packer) => Self::Pack(Box::new(packer)),
                    Err(e) => Self::instead(model, &e),
                }
            }
        }
    }

    fn read(model: &Loaded) -> Self {
        Self::Read(0, model.model.file_bytes())
    }

    /// Packs into memory, if there is something to pack and room.
    fn memory(model: &Loaded) -> Self {
        match Packer::memory(&model.model) {
            Ok(packer) => Self::Pack(Box::new(packer)),
            Err(PackError::Nothing { .. }) => Self::read(model),
            Err(e) => {
                log::info!("model {}: weights are read as the file has them: {e}", model.id);
                Self::read(model)
            }
        }
    }

    /// The same, because there is no packed file.
    fn instead(model: &Loaded, why: &PackError) -> Self {
        if !matches!(why, PackError::Nothing { .. } | PackError::Directory { .. }) {
            log::info!("model {}: is not packed into a file: {why}", model.id);
        }
        Self::memory(model)
    }

    /// Bytes of the file that are through, and that are to be in all.
    pub(super) fn progress(&self) -> (u64, u64) {
        match self {
            Self::Pack(packer) => packer.progress(),
            Self::Read(done, total) | Self::Play(_, done, total) => (*done, *total),
        }
    }

    /// Works on the next slice; false when there is none.
    pub(super) fn work(&mut self, model: &Loaded, pool: &Pool) -> bool {
        match self {
            Self::Pack(packer) => match packer.work(pool, PACKED) {
                Ok(more) => more,
                Err(e) => {
                    *self = Self::instead(model, &e);
                    true
                }
            },
            Self::Read(done, total) if *done < *total => {
                let n = (*total - *done).min(READ as u64);
                // The file is mapped, so its offsets are addresses.
                model.model.populate(*done as usize, n as usize);
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

    /// The model to run, of `model`, which was loaded, once there is no slice left.
    pub(super) fn finish(self, model: &Loaded) -> Arc<Model> {
        let Self::Pack(packer) = self else { return model.model.clone() };
        let packed = packer.finish().map(Arc::new).and_then(|checkpoint| {
            let model = Model::new(checkpoint.clone())?;
            // Its norms were copied, each of which can have brought in a large page.
            checkpoint.forget_all();
            Ok(model)
        });
        packed.map(Arc::new).unwrap_or_else(|e| {
            log::warn!("model {}: weights are read as the file has them: {e}", model.id);
            model.model.clone()
        })
    }
}
