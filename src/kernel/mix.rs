//! How products of rows of floats with panels are cut into tiles, the same in all tiers that have them.

/// The kernel `$name` for panels of `$type`, with `$tile::<R, P>(a, r, b, p, c, add)` for `R` rows and `P` panels. Eight to
/// twelve sums are under way in a tile, which hides the latency of one.
macro_rules! mix {
    ($features:literal, $name:ident, $type:ty, $load:ident, $tile:ident) => {
        #[target_feature(enable = $features)]
        pub(super) fn $name(a: Strided<'_>, n_rows: usize, b: &Panels<'_, $type>, mut c: StridedMut<'_>, add: bool) {
            $tile!($type, $load);
            let (mut r, n) = (0, b.n);
            while r < n_rows {
                macro_rules! tiles {
                    ($rows:literal $panels:literal) => {{
                        let mut p = 0;
                        while n - p >= $panels {
                            tile::<$rows, $panels>(a, r, b, p, &mut c, add);
                            p += $panels;
                        }
                        while p < n {
                            tile::<$rows, 1>(a, r, b, p, &mut c, add);
                            p += 1;
                        }
                        r += $rows;
                    }};
                }
                match n_rows - r {
                    1 => tiles!(1 4),
                    2 => tiles!(2 2),
                    3 => tiles!(3 1),
                    // Seven are four and three, eight are two times four.
                    4 | 7 | 8 => tiles!(4 1),
                    5 => tiles!(5 1),
                    _ => tiles!(6 1),
                }
            }
        }
    };
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) use mix;
