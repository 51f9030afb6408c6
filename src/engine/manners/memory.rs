//! Whether a model fits, before it is loaded: what it takes, what there is, and how much its sequences may keep.
//!
//! Weights count whether they are copied or mapped from a file: what is mapped is the system's page cache, but a model of
//! which a part has to come from the disk for each token is no use to anybody. Page cache that nobody needs counts as free
//! (`os::memory`).

use std::fmt;

use crate::base::limits::MODELS_SHARE_PERCENT;

/// What a model takes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::engine) struct Need {
    /// Weights that a step may read.
    pub weights: u64,
    /// Buffers of a step.
    pub buffers: u64,
    /// What its longest sequence keeps.
    pub sequence: u64,
    /// Positions of the longest sequence.
    pub n_ctx: usize,
    /// What 64 positions of a sequence keep.
    pub page: u64,
    /// Pages of the longest sequence, and pages that are of use.
    pub n_pages: (usize, usize),
    /// What beginnings that are kept for later requests may take.
    pub prefix: u64,
}

/// What there is for models, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::engine) struct Have {
    /// Memory that could be had now.
    pub available: u64,
    /// The file that says so.
    pub from: String,
    /// What models that are loaded have taken of the system's free memory; not what they mapped.
    pub own: u64,
    /// What models that stay need, mapped weights among it.
    pub stays: u64,
    /// Most that all models may take; 0: [`MODELS_SHARE_PERCENT`] of what there is.
    pub max: u64,
}

/// What a model is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) struct Given {
    /// Pages that its sequences may have together.
    pub n_pages: usize,
    /// Bytes of beginnings that it may keep.
    pub prefix: u64,
    /// Bytes of them that there is memory for, should more be wanted later.
    pub prefix_max: u64,
}

/// A model that does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::engine) struct Short {
    need: Need,
    have: Have,
}

impl Need {
    /// What it takes at the least: with one sequence, the longest.
    pub(in crate::engine) fn least(&self) -> u64 {
        self.weights.saturating_add(self.buffers).saturating_add(self.sequence)
    }

    /// What a model is given of what there is.
    ///
    /// # Errors
    /// When it does not fit.
    pub(in crate::engine) fn fit(&self, have: &Have) -> Result<Given, Short> {
        let room = have.room();
        let Some(left) = room.checked_sub(self.least()) else {
            return Err(Short { need: *self, have: have.clone() });
        };
        // Beginnings save time, further sequences make requests possible.
        let prefix = self.prefix.min(left / 4);
        let (one, most) = self.n_pages;
        let more = (left - prefix).checked_div(self.page).map_or(usize::MAX, |n| n as usize);
        let n_more = more.min(most.saturating_sub(one));
        let prefix_max = left.saturating_sub((n_more as u64).saturating_mul(self.page));
        Ok(Given { n_pages: one.saturating_add(n_more), prefix, prefix_max })
    }
}

impl Have {
    /// What a further model may take.
    fn room(&self) -> u64 {
        let all = self.available.saturating_add(self.own);
        let most = match self.max {
            0 => all / 100 * MODELS_SHARE_PERCENT,
            max => max.min(all),
        };
        most.saturating_sub(self.stays)
    }
}

impl Short {
    /// Bytes that are needed, and that there are.
    pub(in crate::engine) fn numbers(&self) -> (u64, u64) {
        (self.need.least(), self.have.room())
    }
}

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let Need { weights, buffers, sequence, n_ctx, .. } = self.need;
        let (need, room) = self.numbers();
        write!(
            f,
            "{} MiB are needed (weights {}, one sequence of {n_ctx} positions {}, buffers {}), {} may be taken: ",
            mib(need),
            mib(weights),
            mib(sequence),
            mib(buffers),
            room >> 20,
        )?;
        let Have { available, from, own, stays, max } = &self.have;
        let all = available.saturating_add(*own);
        match *max {
            0 => write!(f, "{MODELS_SHARE_PERCENT} % of the {} there are by {from}", all >> 20)?,
            max if max <= all => write!(f, "models.memory_max_mib is {}", max >> 20)?,
            _ => write!(f, "there are {} by {from}", all >> 20)?,
        }
        if *stays > 0 {
            write!(f, ", less {} of other models", mib(*stays))?;
        }
        f.write_str(match self.need.page {
            0 => "; use a smaller model",
            _ => "; ask for a smaller engine.context or engine.kv_type \"q8_0\", or use a smaller model",
        })
    }
}

#[cfg(test)]
mod tests {
    use arbtest::arbtest;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn need() -> Need {
        Need {
            weights: 400 * MIB,
            buffers: 20 * MIB,
            sequence: 80 * MIB,
            n_ctx: 4_096,
            page: 80 * MIB / 64,
            n_pages: (64, 512),
            prefix: 128 * MIB,
        }
    }

    fn have(available: u64) -> Have {
        Have { available: available * MIB, from: "/proc/meminfo".into(), ..Have::default() }
    }

    #[test]
    fn a_model_that_does_not_fit_is_told_with_its_numbers() {
        let short = need().fit(&have(600)).expect_err("450 of 500");
        assert_eq!(short.numbers(), (500 * MIB, 450 * MIB));
        assert_eq!(
            short.to_string(),
            "500 MiB are needed (weights 400, one sequence of 4096 positions 80, buffers 20), 450 may be taken: 75 % of the \
             600 there are by /proc/meminfo; ask for a smaller engine.context or engine.kv_type \"q8_0\", or use a smaller \
             model"
        );
        // The owner may give more than three quarters, but not what is not there.
        assert!(need().fit(&Have { max: 550 * MIB, ..have(600) }).is_ok());
        let told = |have: Have| need().fit(&have).expect_err("too little").to_string();
        assert!(told(Have { max: 499 * MIB, ..have(600) }).contains("models.memory_max_mib is 499;"));
        assert!(told(Have { max: 900 * MIB, ..have(400) }).contains("there are 400 by /proc/meminfo;"));
        assert!(told(Have { stays: 300 * MIB, ..have(900) }).contains("less 300 of other models"));
        // What a loaded model holds was free before.
        assert!(need().fit(&Have { own: 300 * MIB, ..have(400) }).is_ok());
    }

    #[test]
    fn what_is_given_fits_and_more_memory_never_gives_less() {
        arbtest(|u| {
            let mut bytes = |most: u64| u.int_in_range(0..=most);
            let one = bytes(1_000)? as usize;
            let need = Need {
                weights: bytes(1 << 34)?,
                buffers: bytes(1 << 28)?,
                sequence: bytes(1 << 32)?,
                n_ctx: one * 64,
                page: bytes(1 << 26)?,
                n_pages: (one, bytes(10_000)? as usize),
                prefix: bytes(1 << 30)?,
            };
            let mut have = Have { available: bytes(1 << 35)?, own: bytes(1 << 33)?, ..have(0) };
            (have.stays, have.max) = (bytes(1 << 33)?, bytes(1)? * bytes(1 << 35)?);
            let first = need.fit(&have);
            match &first {
                Ok(given) => {
                    let more = (given.n_pages - one) as u64 * need.page;
                    assert!(need.least() + given.prefix_max + more <= have.room());
                    assert!(
                        given.prefix <= need.prefix.min(given.prefix_max)
                            && given.n_pages <= need.n_pages.1.max(one)
                    );
                }
                Err(short) => assert!(short.numbers().0 > short.numbers().1),
            }
            have.available += bytes(1 << 34)?;
            let Ok(given) = first else { return Ok(()) };
            let then = need.fit(&have).expect("it fitted in less");
            assert!(then.prefix >= given.prefix, "{given:?}, {then:?}");
            assert!(need.least().saturating_add(u64::MAX / 2) > 0);
            Ok(())
        });
        let all = Need { weights: u64::MAX, buffers: u64::MAX, sequence: u64::MAX, ..need() };
        assert!(all.fit(&have(1 << 40)).is_err(), "no sum overflows");
    }
}
