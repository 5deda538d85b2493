//! The guard's judgement: what callgrind counted, against what is on record.
//!
//! An instruction count does not depend on the load of the machine, so a few percent of it mean something. It does
//! depend on the compiler, on the architecture and, by a few instructions, on the C library.

use std::fmt::Write as _;

/// Calls that are counted of each function, and calls before them. The first calls are not like the others: the
/// allocator has no memory at hand yet.
pub const CALLS: u64 = 100;
pub const WARM_UP: u64 = 10;

/// A function may take this much more than on record: what another C library makes of `malloc` and `memcpy`. A change
/// that matters is larger.
const WORSE_PERCENT: u64 = 5;

/// This much less, and the record should follow: a record that is too high lets the next change for the worse pass.
const BETTER_PERCENT: u64 = 10;

/// Fewer instructions than this are no difference. Five percent of a very short function are one or two.
const SLACK: u64 = 20;

/// A function's name and its instructions per call.
pub type Count = (String, u64);

/// Reads the parts of callgrind's combined output, and gives what each call of `function` cost.
///
/// # Errors
/// When the output is not as expected; the text says what is missing.
pub fn totals(output: &str, function: &str) -> Result<Vec<u64>, String> {
    let mut totals = Vec::new();
    let mut ours = false;
    for line in output.lines() {
        if let Some(trigger) = line.strip_prefix("desc: Trigger: ") {
            ours = trigger.contains(function);
        } else if let Some(sum) = line.strip_prefix("summary: ")
            && std::mem::take(&mut ours)
        {
            totals.push(sum.trim().parse().map_err(|_| format!("callgrind's sum is not a number: {sum}"))?);
        }
    }
    if totals.is_empty() {
        return Err(format!("callgrind saw no call of {function}"));
    }
    Ok(totals)
}

/// What the record says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Record {
    pub architecture: String,
    pub counts: Vec<Count>,
}

impl Record {
    /// # Errors
    /// When a line is neither a comment nor a name with a number.
    pub fn parse(text: &str) -> Result<Record, String> {
        let mut record = Record::default();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            match *line.split_whitespace().collect::<Vec<_>>() {
                ["architecture", name] => name.clone_into(&mut record.architecture),
                [name, count] => {
                    let count = count.parse().map_err(|_| format!("not a number: {line}"))?;
                    record.counts.push((name.to_owned(), count));
                }
                _ => return Err(format!("neither a comment nor a name and a number: {line}")),
            }
        }
        Ok(record)
    }

    /// The record as a file.
    pub fn render(&self) -> String {
        let mut text = format!(
            "# Instructions per call of the hot path's functions, as callgrind counts them. Written by\n\
             # `scripts/instructions --record`; benches/README.md says when to do that.\n\
             architecture {}\n\n",
            self.architecture
        );
        let width = self.counts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, count) in &self.counts {
            // Writing to a String does not fail.
            let _ = writeln!(text, "{name:width$} {count:>8}");
        }
        text
    }

    fn of(&self, name: &str) -> Option<u64> {
        self.counts.iter().find(|(known, _)| known == name).map(|(_, count)| *count)
    }
}

/// What a check found: a line for each function, and what follows from them.
#[derive(Debug, Default)]
pub struct Report {
    pub lines: Vec<String>,
    /// Why the check fails.
    pub faults: Vec<String>,
    /// What could be better, and fails nothing.
    pub hints: Vec<String>,
}

/// Compares what was counted with the record.
pub fn compare(record: &Record, counted: &[Count]) -> Report {
    let mut report = Report::default();
    for (name, count) in counted {
        let Some(before) = record.of(name) else {
            report.faults.push(format!("{name}: {count} instructions a call, and none on record"));
            continue;
        };
        let percent = (*count as f64 - before as f64) / before.max(1) as f64 * 100.0;
        let line = format!("{name}: {count} instructions a call, {before} on record ({percent:+.1} %)");
        if count.saturating_sub(before) > SLACK.max(before * WORSE_PERCENT / 100) {
            report.faults.push(line.clone());
        } else if before.saturating_sub(*count) > SLACK.max(before * BETTER_PERCENT / 100) {
            report.hints.push(line.clone());
        }
        report.lines.push(line);
    }
    for (name, _) in &record.counts {
        if !counted.iter().any(|(known, _)| known == name) {
            report.faults.push(format!("{name}: on record, and no longer counted"));
        }
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(counts: &[(&str, u64)]) -> Vec<Count> {
        counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }

    fn record(of: &[(&str, u64)]) -> Record {
        Record { architecture: "x86_64".to_owned(), counts: counts(of) }
    }

    #[test]
    fn a_record_that_is_written_can_be_read() {
        let record = record(&[("parse/300", 1234), ("sign", 7)]);
        assert_eq!(Record::parse(&record.render()), Ok(record));
        assert!(Record::parse("parse many").is_err());
        assert!(Record::parse("parse 1 2").is_err());
    }

    #[test]
    fn only_the_function_that_got_worse_is_at_fault() {
        let record = record(&[("short", 30), ("same", 1000), ("worse", 1000), ("better", 1000)]);
        let now = counts(&[("short", 49), ("same", 1050), ("worse", 1051), ("better", 899)]);
        let report = compare(&record, &now);
        assert_eq!(report.faults, ["worse: 1051 instructions a call, 1000 on record (+5.1 %)"]);
        assert_eq!(report.hints, ["better: 899 instructions a call, 1000 on record (-10.1 %)"]);
        assert_eq!(report.lines.len(), 4);
    }

    #[test]
    fn a_function_without_a_record_and_a_record_without_a_function_are_faults() {
        let report = compare(&record(&[("old", 1)]), &counts(&[("new", 1)]));
        assert_eq!(report.faults.len(), 2, "{:?}", report.faults);
    }

    #[test]
    fn the_sums_of_our_own_parts_are_read() {
        let part =
            |trigger, sum| format!("part: 1\ndesc: Trigger: {trigger}\n\nevents: Ir\nsummary: {sum}\nfn=x\n");
        let output = part("--dump-after=counted", "70")
            + &part("--dump-after=counted", "9")
            + &part("Program termination", "3");
        assert_eq!(totals(&output, "counted"), Ok(vec![70, 9]));
        assert!(totals(&output, "other").is_err());
    }
}
