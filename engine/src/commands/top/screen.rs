//! The terminal: frames over each other on a screen of their own, or one below the other where there is none.

use std::io::{self, IsTerminal as _, Write as _};

use super::frame::{Line, Tone};

/// Another screen, without cursor and without breaking long lines.
const BEGIN: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J";
const END: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";

/// Where frames go. Dropping it gives the terminal back as it was.
pub(super) struct Screen {
    is_own: bool,
    is_coloured: bool,
    /// Frames so far that stand one below the other.
    frames: usize,
}

impl Screen {
    /// A terminal is taken over unless there is one frame only. `NO_COLOR` (no-color.org) is heeded.
    pub(super) fn begin(once: bool) -> io::Result<Screen> {
        let is_terminal = io::stdout().is_terminal();
        let plain = std::env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty());
        let is_own = is_terminal && !once;
        if is_own {
            write(BEGIN)?;
        }
        Ok(Screen { is_own, is_coloured: is_terminal && !plain, frames: 0 })
    }

    pub(super) fn show(&mut self, lines: &[Line]) -> io::Result<()> {
        let frame = match self.is_own {
            true => placed(lines, self.is_coloured),
            false => listed(lines, self.is_coloured, self.frames > 0),
        };
        self.frames += 1;
        write(&frame)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.is_own {
            // A terminal that is gone needs nothing back.
            let _ = write(END);
        }
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Each line at its place, so that a screen with fewer lines does not scroll. Cleared before it is written: the cursor stays on
/// the last letter of a line that is as wide as the screen, which clearing behind it would take.
fn placed(lines: &[Line], coloured: bool) -> String {
    let line = |(at, line): (usize, &Line)| format!("\x1b[{};1H\x1b[K{}", at + 1, painted(line, coloured));
    lines.iter().enumerate().map(line).collect()
}

fn listed(lines: &[Line], coloured: bool, again: bool) -> String {
    let mut text = if again { "\n".to_owned() } else { String::new() };
    for line in lines {
        text.push_str(painted(line, coloured).trim_end());
        text.push('\n');
    }
    text
}

fn painted(line: &Line, coloured: bool) -> String {
    match (line.tone, coloured) {
        (Tone::Plain, _) | (_, false) => line.text.clone(),
        (Tone::Head, true) => format!("\x1b[1m{}\x1b[0m", line.text),
        (Tone::Alarm, true) => format!("\x1b[31m{}\x1b[0m", line.text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines() -> Vec<Line> {
        vec![
            Line { tone: Tone::Head, text: "head  ".to_owned() },
            Line { tone: Tone::Alarm, text: "alarm".to_owned() },
            Line { tone: Tone::Plain, text: "plain".to_owned() },
        ]
    }

    #[test]
    fn a_pipe_gets_plain_lines() {
        assert_eq!(listed(&lines(), false, false), "head\nalarm\nplain\n");
        assert_eq!(listed(&lines(), false, true), "\nhead\nalarm\nplain\n");
    }

    #[test]
    fn a_terminal_gets_each_line_at_its_place_with_colours_if_they_are_wanted() {
        let placed_plain = placed(&lines(), false);
        assert!(
            placed_plain.starts_with("\x1b[1;1H\x1b[Khead") && placed_plain.ends_with("\x1b[3;1H\x1b[Kplain")
        );
        assert!(!placed_plain.contains('\n') && !placed_plain.contains("\x1b[1m"));
        assert!(placed(&lines(), true).contains("\x1b[31malarm\x1b[0m"));
    }
}
