//! The ratios as a picture.

use std::fmt::Write as _;

use crate::stats::Ratio;

/// Heights and widths in pixels.
const ROW: usize = 22;
const LABEL: f64 = 330.0;
const WIDTH: f64 = 900.0;

/// A bar for each cell up to its median, its interval as a line, and a line at 1.
pub(crate) fn svg(bars: &[(String, Ratio)]) -> String {
    let most = bars.iter().map(|(_, r)| r.high).fold(1.0, f64::max);
    let x = |ratio: f64| LABEL + ratio / most * (WIDTH - LABEL - 60.0);
    let height = (bars.len() + 2) * ROW;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"8\" y=\"16\">tokens a second \
         by the best peer's: median, 90 % interval</text>\n"
    );
    for (i, (name, r)) in bars.iter().enumerate() {
        let (top, middle) = ((i + 1) * ROW + 4, (i + 1) * ROW + 12);
        let color = if r.low >= 1.0 { "#4a8" } else { "#c64" };
        let clean: String = name.chars().filter(|c| !matches!(c, '<' | '>' | '&' | '"')).collect();
        let _ = writeln!(
            out,
            "<text x=\"8\" y=\"{}\">{clean}</text><rect x=\"{LABEL}\" y=\"{top}\" width=\"{:.1}\" height=\"15\" \
             fill=\"{color}\"/><line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle}\" y2=\"{middle}\" stroke=\"black\"/><text \
             x=\"{:.1}\" y=\"{}\">{:.2}</text>",
            top + 12,
            x(r.median) - LABEL,
            x(r.low),
            x(r.high),
            x(r.high) + 6.0,
            top + 12,
            r.median
        );
    }
    let one = x(1.0);
    let _ = writeln!(
        out,
        "<line x1=\"{one:.1}\" x2=\"{one:.1}\" y1=\"{ROW}\" y2=\"{height}\" stroke=\"black\" stroke-dasharray=\"4\"/>\n</svg>"
    );
    out
}
