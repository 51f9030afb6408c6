//! The packed layout: the same integers and floats as the blocks of a file, in the order in which kernels read them.
//!
//! A **panel** is 16 rows. Each 32-bit lane of a register is one of them, so a product needs no horizontal sum: a
//! vector of 64 bytes has, of row `r`, the codes of four neighbouring weights in bytes `4 r .. 4 r + 4` (a **step**).
//! A group of 32 weights has 8 steps. Codes are unsigned ([`Packing::bias`] was added, or they are places in a table),
//! but those of 8 bits. A panel holds, one after the other, for all groups or blocks of its rows:
//!
//! | Section | For | Bytes | Is |
//! |-|-|-|-|
//! | low | a group | 256 or 128 or 512 | the low 4, 2 or 8 bits of codes. Of 4: vector `v` has step `v` in the low nibbles, step `v + 4` in the high ones. Of 2: vector `v` has steps `v`, `v + 2`, `v + 4`, `v + 6` from the lowest bits on. Of 8: a vector a step |
//! | high | a group | 64 or 128 | the further bits. Of 1: bit `i` is that of step `i`. Of 2: as the low ones |
//! | integers | a block, or a group | 192, or 16 or 32 | see [`Integers`]; byte `16 i + r` is the `i`-th of row `r` |
//! | floats | a block | 32 or 64 | `d` of 16 rows, then `dmin` of 16 rows, 2 bytes each |
//!
//! Formats without blocks (F32, F16, BF16) have one section: of each column the weights of the 16 rows, one after the other.
//!
//! Rows that a matrix lacks are zeros: their floats are 0. A panel takes a multiple of 64 bytes.

use super::*;

/// Rows of a panel.
pub const PANEL: usize = 16;
/// Weights of a group: they share a scale of the activations.
const GROUP: usize = 32;
/// Steps of a group, of four weights each.
const STEPS: usize = 8;

/// Integers beside the codes of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Integers {
    /// None: scales are 1.
    None,
    /// One byte: the scale of the group, signed.
    Scale,
    /// Two bytes: the scales of both halves, signed.
    Halves,
    /// Two bytes of two nibbles: scales of both halves, minima of both halves; the first of two in the low nibble.
    HalvesAndMins,
    /// Two numbers of 6 bits: scale and minimum of the group.
    ScaleAndMin6,
    /// Two numbers of 6 bits: the scales of both halves, each 32 above what it is.
    Halves6,
}

/// Sixteen-bit floats of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float {
    /// IEEE.
    F16,
    /// The upper half of an f32: powers of two beyond the range of the other.
    BF16,
}

/// How a format is packed.
#[derive(Clone, Copy, Debug)]
pub struct Packing {
    /// Low bits of a code: 2, 4 or 8.
    pub low: usize,
    /// Further bits: 0, 1 or 2.
    pub high: usize,
    /// What was added to a code so that it is not negative; 0 where codes are of 8 bits, or places in `table`.
    pub bias: i8,
    /// What a code stands for.
    pub table: Option<&'static [i8; 16]>,
    /// Beside the codes of each group.
    pub integers: Integers,
    /// Groups of a block, which share the floats.
    pub groups: usize,
    /// Kind of the floats.
    pub float: Float,
    /// Whether there is a `dmin`.
    pub mins: bool,
}

impl Packing {
    /// How `quant` is packed; `None` for formats without blocks.
    #[must_use]
    pub const fn of(quant: Quant) -> Option<Self> {
        const BLOCK: Packing = Packing {
            low: 4,
            high: 0,
            bias: 0,
            table: None,
            integers: Integers::None,
            groups: 1,
            float: Float::F16,
            mins: false,
        };
        const SUPER: Packing = Packing { groups: 8, ..BLOCK };
        Some(match quant {
            Quant::F32 | Quant::F16 | Quant::BF16 => return None,
            Quant::Q4_0 => Self { bias: 8, ..BLOCK },
            Quant::Q4_1 => Self { mins: true, ..BLOCK },
            Quant::Q5_0 => Self { high: 1, bias: 16, ..BLOCK },
            Quant::Q5_1 => Self { high: 1, mins: true, ..BLOCK },
            Quant::Q8_0 => Self { low: 8, ..BLOCK },
            Quant::Q2_K => Self { low: 2, integers: Integers::HalvesAndMins, mins: true, ..SUPER },
            Quant::Q3_K => Self { low: 2, high: 1, bias: 4, integers: Integers::Halves6, ..SUPER },
            Quant::Q4_K => Self { integers: Integers::ScaleAndMin6, mins: true, ..SUPER },
            Quant::Q5_K => Self { high: 1, integers: Integers::ScaleAndMin6, mins: true, ..SUPER },
            Quant::Q6_K => Self { high: 2, bias: 32, integers: Integers::Halves, ..SUPER },
            Quant::IQ4_NL => Self { table: Some(&IQ4), ..BLOCK },
            Quant::IQ4_XS => Self { table: Some(&IQ4), integers: Integers::Scale, ..SUPER },
            Quant::TQ1_0 | Quant::TQ2_0 => Self { low: 2, bias: 1, ..SUPER },
            Quant::MXFP4 => Self { table: Some(&E2M1), float: Float::BF16, ..BLOCK },
        })
    }

    /// Bytes of the integers of `n` groups of 16 rows.
    const fn integer_bytes(&self, n: usize) -> usize {
        PANEL
            * match self.integers {
                Integers::None => 0,
                Integers::Scale => n,
                Integers::Halves | Integers::HalvesAndMins => 2 * n,
                Integers::ScaleAndMin6 | Integers::Halves6 => n + n / 2,
            }
    }

    /// Where the sections of a panel of `n_cols` weights a row begin: low, high, integers, floats, the end.
    #[must_use]
    pub const fn sections(&self, n_cols: usize) -> [usize; 5] {
        let n = n_cols / GROUP;
        let high = n * PANEL * GROUP * self.low / 8;
        let integers = high + n * PANEL * GROUP * self.high / 8;
        let floats = integers + self.integer_bytes(n);
        let each = PANEL * if self.mins { 4 } else { 2 };
        [0, high, integers, floats, (floats + n / self.groups * each).next_multiple_of(64)]
    }

    /// Bytes of the codes of a group, of the further bits of one, of the integers of a block and of its floats.
    #[must_use]
    pub const fn parts(&self) -> [usize; 4] {
        let [_, high, integers, floats, _] = self.sections(GROUP * self.groups);
        let each = PANEL * if self.mins { 4 } else { 2 };
        [high / self.groups, (integers - high) / self.groups, floats - integers, each]
    }
}

/// Bytes of a panel of `n_cols` weights of `quant` a row, whole blocks.
#[must_use]
pub fn panel_bytes(quant: Quant, n_cols: usize) -> usize {
    match Packing::of(quant) {
        Some(packing) => packing.sections(n_cols)[4],
        None => (n_cols * quant.block_bytes() * PANEL).next_multiple_of(64),
    }
}

/// Bytes of a matrix in panels; `None` if they are more than a machine can count, or blocks do not fill its rows.
#[must_use]
pub fn bytes(quant: Quant, n_rows: usize, n_cols: usize) -> Option<usize> {
    quant.row_bytes(n_cols)?;
    n_rows.div_ceil(PANEL).checked_mul(panel_bytes(quant, n_cols))
}

/// What 32 weights of a panel are made of, `[row]`: as in [`Block`].
#[derive(Clone, Debug)]
pub struct Group {
    /// Codes, signed.
    pub codes: [[i8; GROUP]; PANEL],
    /// Scale of each half.
    pub scales: [[i8; 2]; PANEL],
    /// Minimum of each half.
    pub mins: [[u8; 2]; PANEL],
    /// `(d, dmin)`.
    pub floats: [(f32, f32); PANEL],
}

/// What 32 weights of one row are made of: codes, the scale and the minimum of each half, `(d, dmin)`.
struct Lane {
    codes: [i8; GROUP],
    scales: [i8; 2],
    mins: [u8; 2],
    floats: (f32, f32),
}

impl Lane {
    /// Group `g` of row `r` of a panel of `n_cols` weights a row: the definition of the layout.
    fn read(packing: &Packing, panel: &[u8], n_cols: usize, g: usize, r: usize) -> Self {
        let [low, high, integers, floats, _] = packing.sections(n_cols);
        let (block, in_block) = (g / packing.groups, g % packing.groups);
        let code = |k: usize| {
            let (step, byte) = (k / 4, 4 * r + k % 4);
            let two = |at: usize| panel[at + g * 128 + step % 2 * 64 + byte] >> (2 * (step / 2)) & 3;
            let low = match packing.low {
                2 => two(low),
                4 => panel[low + g * 256 + step % 4 * 64 + byte] >> (4 * (step / 4)) & 15,
                _ => panel[low + g * 512 + step * 64 + byte],
            };
            let high = match packing.high {
                0 => 0,
                1 => panel[high + g * 64 + byte] >> step & 1,
                _ => two(high),
            };
            match packing.table {
                Some(table) => table[usize::from(low)],
                None => (low | high << (packing.low % 8)) as i8 - packing.bias,
            }
        };
        let byte = |i: usize| panel[integers + i * PANEL + r];
        // Six bits: the low four in the nibbles of a byte a group, the high two of two groups in a byte behind those.
        let six = || {
            let at = block * packing.groups * 3 / 2;
            let (low, high) = (byte(at + in_block), byte(at + packing.groups + in_block / 2));
            let high = high >> (4 * (in_block % 2));
            [low & 15 | (high & 3) << 4, low >> 4 | (high >> 2 & 3) << 4]
        };
        let float = |i: usize| {
            let at = floats + ((block * if packing.mins { 2 } else { 1 } + i) * PANEL + r) * 2;
            let bits = u16::from_le_bytes([panel[at], panel[at + 1]]);
            match packing.float {
                Float::F16 => half::f16::from_bits(bits).to_f32(),
                Float::BF16 => half::bf16::from_bits(bits).to_f32(),
            }
        };
        Self {
            codes: std::array::from_fn(code),
            scales: match packing.integers {
                Integers::None => [1; 2],
                Integers::Scale => [byte(g) as i8; 2],
                Integers::Halves => [byte(2 * g) as i8, byte(2 * g + 1) as i8],
                Integers::HalvesAndMins => [byte(2 * g) & 15, byte(2 * g) >> 4].map(|s| s as i8),
                Integers::ScaleAndMin6 => [six()[0] as i8; 2],
                Integers::Halves6 => six().map(|s| s as i8 - 32),
            },
            mins: match packing.integers {
                Integers::ScaleAndMin6 => [six()[1]; 2],
                Integers::HalvesAndMins => [byte(2 * g + 1) & 15, byte(2 * g + 1) >> 4],
                _ => [u8::from(packing.mins); 2],
            },
            floats: (float(0), if packing.mins { float(1) } else { 0.0 }),
        }
    }
}

impl Group {
    /// Group `g` of a panel of `n_cols` weights a row.
    ///
    /// # Panics
    /// If the panel is too short.
    #[must_use]
    pub fn read(packing: &Packing, panel: &[u8], n_cols: usize, g: usize) -> Self {
        let lanes: [Lane; PANEL] = std::array::from_fn(|r| Lane::read(packing, panel, n_cols, g, r));
        Self {
            codes: std::array::from_fn(|r| lanes[r].codes),
            scales: std::array::from_fn(|r| lanes[r].scales),
            mins: std::array::from_fn(|r| lanes[r].mins),
            floats: std::array::from_fn(|r| lanes[r].floats),
        }
    }
}

/// Writes the weights of row `r` of a panel as floats, `out.len()` of them from column `start` on, with the bits that
/// [`unpack`] gives for the row of a file.
///
/// # Panics
/// If the panel is too short, or groups of 32 of a format with blocks do not begin and end there.
pub fn unpack_part(quant: Quant, panel: &[u8], n_cols: usize, r: usize, start: usize, out: &mut [f32]) {
    let Some(packing) = Packing::of(quant) else {
        let each = quant.block_bytes();
        for (weight, out) in panel.chunks_exact(each).skip(start * PANEL + r).step_by(PANEL).zip(out) {
            unpack_row(quant, weight, std::slice::from_mut(out));
        }
        return;
    };
    let (groups, rest) = out.as_chunks_mut::<GROUP>();
    assert!(start.is_multiple_of(GROUP) && rest.is_empty(), "whole groups from column {start}");
    for (g, out) in (start / GROUP..).zip(groups) {
        let Lane { codes, scales, mins, floats: (d, dmin) } = Lane::read(&packing, panel, n_cols, g, r);
        for (k, (y, code)) in out.iter_mut().zip(codes).enumerate() {
            // From left to right, as `Block` says.
            *y = d * f32::from(scales[k / 16]) * f32::from(code) - dmin * f32::from(mins[k / 16]);
        }
    }
}

/// Packs up to 16 rows of `n_cols` weights into `panel`, which is zeroed.
pub type PackPanel = fn(&[u8], usize, &mut [u8]);

/// What packs rows of `quant`: takes their bytes, the weights of a row, and a panel's bytes.
#[must_use]
pub const fn pack_panel(quant: Quant) -> PackPanel {
    match quant {
        Quant::F32 => pack_floats::<4>,
        Quant::F16 | Quant::BF16 => pack_floats::<2>,
        Quant::Q4_0 => pack::<BlockQ4_0, 1, { Quant::Q4_0 as usize }>,
        Quant::Q4_1 => pack::<BlockQ4_1, 1, { Quant::Q4_1 as usize }>,
        Quant::Q5_0 => pack::<BlockQ5_0, 1, { Quant::Q5_0 as usize }>,
        Quant::Q5_1 => pack::<BlockQ5_1, 1, { Quant::Q5_1 as usize }>,
        Quant::Q8_0 => pack::<BlockQ8_0, 1, { Quant::Q8_0 as usize }>,
        Quant::Q2_K => pack::<BlockQ2K, 8, { Quant::Q2_K as usize }>,
        Quant::Q3_K => pack::<BlockQ3K, 8, { Quant::Q3_K as usize }>,
        Quant::Q4_K => pack::<BlockQ4K, 8, { Quant::Q4_K as usize }>,
        Quant::Q5_K => pack::<BlockQ5K, 8, { Quant::Q5_K as usize }>,
        Quant::Q6_K => pack::<BlockQ6K, 8, { Quant::Q6_K as usize }>,
        Quant::IQ4_NL => pack::<BlockIQ4NL, 1, { Quant::IQ4_NL as usize }>,
        Quant::IQ4_XS => pack::<BlockIQ4XS, 8, { Quant::IQ4_XS as usize }>,
        Quant::TQ1_0 => pack::<BlockTQ1_0, 8, { Quant::TQ1_0 as usize }>,
        Quant::TQ2_0 => pack::<BlockTQ2_0, 8, { Quant::TQ2_0 as usize }>,
        Quant::MXFP4 => pack::<BlockMXFP4, 1, { Quant::MXFP4 as usize }>,
    }
}

/// Weights of `N` bytes.
fn pack_floats<const N: usize>(rows: &[u8], n_cols: usize, panel: &mut [u8]) {
    let (weights, panel) = (rows.as_chunks::<N>().0, panel.as_chunks_mut::<N>().0);
    for (r, row) in weights.chunks_exact(n_cols).enumerate() {
        for (out, weight) in panel.iter_mut().skip(r).step_by(PANEL).zip(row) {
            *out = *weight;
        }
    }
}

fn pack<B: Block<G>, const G: usize, const Q: usize>(rows: &[u8], n_cols: usize, panel: &mut [u8]) {
    let packing = const {
        match Packing::of(Quant::ALL[Q]) {
            Some(packing) => packing,
            None => panic!("a format without blocks"),
        }
    };
    let [low, high, integers, floats, _] = packing.sections(n_cols);
    let n_blocks = n_cols / (G * GROUP);
    // A place in the table for each value.
    let mut places = [0; 256];
    for (place, value) in packing.table.into_iter().flatten().enumerate() {
        places[usize::from(*value as u8)] = place as u8;
    }
    for (i, block) in blocks::<B>(rows).iter().enumerate() {
        let (r, b) = (i / n_blocks, i % n_blocks);
        let (scales, mins) = (block.scales(), block.mins());
        for (j, codes) in block.codes().iter().enumerate() {
            let g = b * G + j;
            let unsigned = match packing.table {
                Some(_) => codes.map(|code| places[usize::from(code as u8)]),
                None => codes.map(|code| code.wrapping_add(packing.bias) as u8),
            };
            // The four codes of a step at a time: shifts stay within a byte, because what is shifted has few bits.
            let mut steps = [0; STEPS];
            for (step, codes) in steps.iter_mut().zip(unsigned.as_chunks().0) {
                *step = u32::from_le_bytes(*codes);
            }
            let mut put =
                |at: usize, word: u32| panel[at + 4 * r..][..4].copy_from_slice(&word.to_le_bytes());
            let bits =
                |step: usize, from: usize, n: u32| steps[step] >> from & (0x0101_0101 * ((1 << n) - 1));
            let two =
                |v: usize, from: usize| -> u32 { (0..4).map(|i| bits(v + 2 * i, from, 2) << (2 * i)).sum() };
            match packing.low {
                2 => (0..2).for_each(|v| put(low + g * 128 + v * 64, two(v, 0))),
                4 => (0..4).for_each(|v| put(low + g * 256 + v * 64, bits(v, 0, 4) | bits(v + 4, 0, 4) << 4)),
                _ => (0..8).for_each(|v| put(low + g * 512 + v * 64, steps[v])),
            }
            match packing.high {
                0 => {}
                1 => put(high + g * 64, (0..8).map(|i| bits(i, packing.low, 1) << i).sum()),
                _ => (0..2).for_each(|v| put(high + g * 128 + v * 64, two(v, packing.low))),
            }
            let mut put = |i: usize, byte: u8| panel[integers + i * PANEL + r] |= byte;
            let mut put_six = |[first, second]: [u8; 2]| {
                let at = b * G * 3 / 2;
                put(at + j, first & 15 | second << 4);
                put(at + G + j / 2, (first >> 4 | second >> 4 << 2) << (4 * (j % 2)));
            };
            match packing.integers {
                Integers::None => {}
                Integers::Scale => put(g, scales[j][0] as u8),
                Integers::Halves => {
                    put(2 * g, scales[j][0] as u8);
                    put(2 * g + 1, scales[j][1] as u8);
                }
                Integers::HalvesAndMins => {
                    put(2 * g, scales[j][0] as u8 | (scales[j][1] as u8) << 4);
                    put(2 * g + 1, mins[j][0] | mins[j][1] << 4);
                }
                Integers::ScaleAndMin6 => put_six([scales[j][0] as u8, mins[j][0]]),
                Integers::Halves6 => put_six(scales[j].map(|s| (s + 32) as u8)),
            }
        }
        let per_block = if packing.mins { 2 } else { 1 };
        let (d, dmin) = block.floats(f16_value);
        for (i, value) in [d, dmin].into_iter().enumerate().take(per_block) {
            let bits = match packing.float {
                Float::F16 => half::f16::from_f32(value).to_bits(),
                Float::BF16 => half::bf16::from_f32(value).to_bits(),
            };
            panel[floats + ((b * per_block + i) * PANEL + r) * 2..][..2].copy_from_slice(&bits.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;

    /// Nothing is lost: the integers and floats are those of the file.
    #[test]
    fn packed_weights_are_those_of_the_rows_bit_for_bit() {
        for quant in Quant::ALL {
            let (n_rows, n_cols) = (11, 512);
            let row_bytes = quant.row_bytes(n_cols).expect("whole blocks");
            let mut rng = Rng::new(3);
            let mut rows: Vec<u8> = (0..n_rows * row_bytes).map(|_| rng.next_u64() as u8).collect();
            if quant == Quant::MXFP4 {
                rows.chunks_exact_mut(17)
                    .enumerate()
                    .for_each(|(i, block)| block[0] = [0, 1, 120, 254][i % 4]);
            }
            let mut panel = vec![0; bytes(quant, n_rows, n_cols).expect("small")];
            assert!(panel.len().is_multiple_of(64));
            pack_panel(quant)(&rows, n_cols, &mut panel);
            let mut wanted = vec![0.0; n_cols];
            for r in 0..PANEL {
                wanted.fill(0.0);
                if r < n_rows {
                    unpack_row(quant, &rows[r * row_bytes..][..row_bytes], &mut wanted);
                }
                for (g, wanted) in wanted.chunks_exact(GROUP).enumerate() {
                    let mut part = [0.0; GROUP];
                    unpack_part(quant, &panel, n_cols, r, g * GROUP, &mut part);
                    let group = Packing::of(quant).map(|packing| Group::read(&packing, &panel, n_cols, g));
                    for (k, wanted) in wanted.iter().enumerate() {
                        let made = group.as_ref().map(|group| {
                            let (scale, min) = (group.scales[r][k / 16], group.mins[r][k / 16]);
                            let (d, dmin) = group.floats[r];
                            d * f32::from(scale) * f32::from(group.codes[r][k]) - dmin * f32::from(min)
                        });
                        for found in made.into_iter().chain([part[k]]) {
                            // A NaN is one, whichever; a row that is absent has zeros of either sign.
                            let same = found.to_bits() == wanted.to_bits()
                                || found.is_nan() && wanted.is_nan()
                                || r >= n_rows && found == 0.0;
                            assert!(
                                same,
                                "{} row {r} weight {}: {found} for {wanted}",
                                quant.name(),
                                g * GROUP + k
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn packed_weights_take_hardly_more_room() {
        for quant in Quant::ALL {
            let (rows, packed) =
                (quant.row_bytes(4_096).expect("whole blocks") * 16, bytes(quant, 16, 4_096));
            let ratio = packed.expect("small") as f64 / rows as f64;
            let most = match quant {
                Quant::TQ1_0 => 1.23,
                Quant::MXFP4 => 1.06,
                Quant::IQ4_XS => 1.02,
                _ => 1.0,
            };
            assert!(ratio <= most, "{}: {ratio}", quant.name());
        }
    }
}
