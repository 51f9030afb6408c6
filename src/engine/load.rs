//! Making a model's weights ready, a slice at a time: packed, or read in as the file has them.

use std::sync::Arc;

use crate::kernel::{Kernels, Pool};
use crate::model::{Model, ModelError, Pack, Packer};

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
}

impl Load {
    pub(super) fn new(model: &Model, pack: Pack, kernels: &Kernels) -> Self {
        match Packer::new(model, pack, kernels) {
            Some(packer) => Self::Pack(Box::new(packer)),
            None => Self::Read(0, model.file_bytes()),
        }
    }

    /// Bytes of the file that are through, and that are to be in all.
    pub(super) fn progress(&self) -> (u64, u64) {
        match self {
            Self::Pack(packer) => packer.progress(),
            Self::Read(done, total) => (*done, *total),
        }
    }

    /// Works on the next slice; false when there is none.
    pub(super) fn work(&mut self, model: &Model, pool: &Pool) -> bool {
        match self {
            Self::Pack(packer) => packer.work(pool, PACKED),
            Self::Read(done, total) if *done < *total => {
                let n = (*total - *done).min(READ as u64);
                // The file is mapped, so its offsets are addresses.
                model.populate(*done as usize, n as usize);
                *done += n;
                true
            }
            Self::Read(..) => false,
        }
    }

    /// The model to run instead of `model`, which was loaded, once there is no slice left.
    pub(super) fn finish(self, model: &Arc<Model>) -> Result<Arc<Model>, ModelError> {
        match self {
            Self::Pack(packer) => Ok(Arc::new(Model::new(Arc::new(packer.finish()))?)),
            Self::Read(..) => Ok(model.clone()),
        }
    }
}
