//! Stop strings in a stream: the answer ends before the first one, and text that may begin one is held back.

/// Looks for stop strings in text that comes in pieces.
#[derive(Debug)]
pub struct StopFilter {
    stops: Vec<String>,
    held: String,
}

impl StopFilter {
    /// A filter for `stops`, none of them empty.
    #[must_use]
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new() }
    }

    /// Takes a piece and appends to `out` what is certain to belong to the answer. True once a stop string was found:
    /// nothing may follow.
    pub fn push(&mut self, text: &str, out: &mut String) -> bool {
        self.held.push_str(text);
        // Of two that are complete, the one that begins first counts.
        if let Some(at) = self.stops.iter().filter_map(|s| self.held.find(s.as_str())).min() {
            out.push_str(&self.held[..at]);
            self.held.clear();
            return true;
        }
        let keep = self.stops.iter().map(|s| overlap(&self.held, s)).max().unwrap_or(0);
        let sure = self.held.len() - keep;
        out.push_str(&self.held[..sure]);
        self.held.drain(..sure);
        false
    }

    /// The generation ended otherwise: what was held back belongs to the answer.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
    }
}

/// Length of the longest end of `text` that begins `stop` without being all of it.
fn overlap(text: &str, stop: &str) -> usize {
    let starts = stop.char_indices().map(|(i, _)| i).skip(1);
    starts.filter(|&n| text.ends_with(&stop[..n])).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(pieces: &[&str], stops: &[&str]) -> (Vec<String>, bool) {
        let mut filter = StopFilter::new(stops.iter().map(|s| (*s).to_owned()).collect());
        let mut outs = Vec::new();
        for piece in pieces {
            let mut out = String::new();
            let found = filter.push(piece, &mut out);
            outs.push(out);
            if found {
                return (outs, true);
            }
        }
        let mut out = String::new();
        filter.finish(&mut out);
        outs.push(out);
        (outs, false)
    }

    #[test]
    fn text_that_may_begin_a_stop_is_held_back() {
        assert_eq!(
            run(&["a E", "N", "D b"], &["END"]),
            (vec!["a ".into(), String::new(), String::new()], true)
        );
        assert_eq!(run(&["a E", "N", "x"], &["END"]).0, ["a ", "", "ENx", ""]);
        assert_eq!(run(&["xaab"], &["aab", "ab"]), (vec!["x".into()], true));
        assert_eq!(run(&["größ", "e"], &["ße"]), (vec!["grö".into(), String::new()], true));
        assert_eq!(run(&["abc"], &[]).0, ["abc", ""]);
    }

    /// However a text is cut into pieces, the same answer comes out.
    #[test]
    fn pieces_change_nothing() {
        arbtest::arbtest(|u| {
            let letter = |u: &mut arbtest::arbitrary::Unstructured<'_>| u.choose(&['a', 'b', 'ü']).copied();
            let text: Vec<char> =
                (0..u.int_in_range(0..=40)?).map(|_| letter(u)).collect::<Result<_, _>>()?;
            let mut stops = Vec::new();
            for _ in 0..u.int_in_range(0..=3)? {
                stops.push((0..u.int_in_range(1..=4)?).map(|_| letter(u)).collect::<Result<String, _>>()?);
            }
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let whole: String = text.iter().collect();
            let cut = stops.iter().filter_map(|s| whole.find(s)).min();
            let mut pieces = vec![String::new()];
            for c in &text {
                if u.arbitrary()? {
                    pieces.push(String::new());
                }
                pieces.last_mut().expect("one piece").push(*c);
            }
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let (outs, found) = run(&pieces, &stops);
            // A stop that begins later may be complete earlier; then the text before it is the answer.
            assert_eq!(found, cut.is_some());
            if stops.len() <= 1 || !found {
                assert_eq!(outs.concat(), whole[..cut.unwrap_or(whole.len())], "{pieces:?} {stops:?}");
            }
            Ok(())
        });
    }
}
