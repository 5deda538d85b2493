//! Foreign texts on a terminal.

/// A text that somebody else wrote as one line that moves no cursor, cut after `max` characters.
pub(super) fn cleaned(text: &str, max: usize) -> String {
    let mut letters = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut kept: String = letters.by_ref().take(max).collect();
    if letters.next().is_some() {
        kept.push_str("...");
    }
    kept
}

/// The same in exactly `width` columns. What is not ASCII may be of any width, and is a question mark.
pub(super) fn fitted(text: &str, width: usize) -> String {
    let plain = |c: char| match c {
        c if c.is_control() => ' ',
        c if c.is_ascii() => c,
        _ => '?',
    };
    let kept: String = text.chars().map(plain).take(width).collect();
    format!("{kept:<width$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_texts_move_no_cursor_and_are_cut() {
        assert_eq!(cleaned("a\x1b[2Jb\nc", 99), "a [2Jb c");
        assert_eq!(cleaned(&"é".repeat(500), 160).chars().count(), 163);
        assert_eq!(fitted("漢字\x1b", 5), "??   ");
        assert_eq!(fitted("longer than it", 6), "longer");
    }
}
