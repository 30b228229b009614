/// Looks for stop strings in text that arrives in pieces.
///
/// What it lets through never contains any part of the stop string that ends the text: the longest suffix that
/// may still begin one is held back. The result does not depend on how the text is cut into pieces: the text
/// ends before the stop string that is complete first, and of several complete at the same character before the
/// longest.
#[derive(Debug)]
pub(crate) struct StopMatcher {
    stop: Vec<String>,
    held: String,
}

impl StopMatcher {
    /// A matcher for `stop`, none of which is empty.
    pub(crate) fn new(stop: Vec<String>) -> Self {
        Self { stop, held: String::new() }
    }

    /// Takes the next piece, appends to `out` what may be seen, and says whether a stop string is complete:
    /// nothing may be pushed after that.
    pub(crate) fn push(&mut self, piece: &str, out: &mut String) -> bool {
        if self.stop.is_empty() {
            out.push_str(piece);
            return false;
        }
        self.held.push_str(piece);
        let found = self
            .stop
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()).map(|start| (start + stop.len(), start)))
            .min();
        if let Some((_, start)) = found {
            out.push_str(&self.held[..start]);
            self.held.clear();
            return true;
        }
        let visible = self.held.len() - self.longest_beginning();
        out.push_str(&self.held[..visible]);
        self.held.drain(..visible);
        false
    }

    /// Appends what is held back: the text ended for another reason.
    pub(crate) fn flush(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
    }

    /// Length of the longest suffix of what is held that is a proper prefix of a stop string.
    fn longest_beginning(&self) -> usize {
        let held = self.held.as_bytes();
        self.stop
            .iter()
            .filter_map(|stop| {
                let stop = stop.as_bytes();
                (1..stop.len().min(held.len() + 1)).rev().find(|&len| held.ends_with(&stop[..len]))
            })
            .max()
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, character by character over the whole text.
    fn naive(text: &str, stop: &[String]) -> (String, bool) {
        for (end, _) in text.char_indices().skip(1).chain([(text.len(), ' ')]) {
            let longest = stop.iter().filter(|s| text[..end].ends_with(s.as_str())).map(String::len).max();
            if let Some(len) = longest {
                return (text[..end - len].to_owned(), true);
            }
        }
        (text.to_owned(), false)
    }

    fn run(pieces: &[&str], stop: &[String]) -> (String, bool) {
        let mut matcher = StopMatcher::new(stop.to_vec());
        let mut out = String::new();
        for piece in pieces {
            if matcher.push(piece, &mut out) {
                return (out, true);
            }
        }
        matcher.flush(&mut out);
        (out, false)
    }

    proptest! {
        #[test]
        fn equals_the_definition_however_it_is_cut(
            pieces in prop::collection::vec("[abé]{0,4}", 0..8),
            stop in prop::collection::vec("[abé]{1,4}", 0..4),
        ) {
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            prop_assert_eq!(run(&pieces, &stop), naive(&pieces.concat(), &stop));
        }
    }

    #[test]
    fn nothing_of_a_stop_string_is_ever_seen() {
        let mut matcher = StopMatcher::new(vec!["\n\nUser:".into()]);
        let mut out = String::new();
        for piece in ["Yes.", "\n", "\n", "Us"] {
            assert!(!matcher.push(piece, &mut out));
            assert_eq!(out, "Yes.");
        }
        assert!(!matcher.push("age", &mut out));
        assert_eq!(out, "Yes.\n\nUsage");
        assert!(matcher.push("\n\nUser: hello", &mut out));
        assert_eq!(out, "Yes.\n\nUsage");
    }

    #[test]
    fn without_stop_strings_nothing_is_held() {
        assert_eq!(run(&["a", "b"], &[]), ("ab".into(), false));
    }
}
