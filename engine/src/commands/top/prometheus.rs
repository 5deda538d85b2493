//! The text format of Prometheus, read as far as our own metrics use it: numbers by name and labels.

use std::collections::HashMap;

/// Series of one process that are kept; ours are some hundred.
const SERIES_MAX: usize = 10_000;

/// What one process said at one moment, by the series' name with its labels as it was written.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sample(HashMap<String, f64>);

impl Sample {
    /// Lines that are no sample are passed over: another version's metrics must not stop this one's.
    pub(super) fn parse(text: &str) -> Sample {
        let lines = text.lines().filter(|line| !line.starts_with('#')).filter_map(series);
        Sample(lines.take(SERIES_MAX).collect())
    }

    /// One series by its name, with `{label="value"}` where it has any; none when the process does not have it.
    pub(super) fn get(&self, series: &str) -> Option<f64> {
        self.0.get(series).copied()
    }

    /// The sum of all series of a metric, whatever their labels; none without one.
    pub(super) fn sum(&self, metric: &str) -> Option<f64> {
        let mine = |series: &str| {
            let rest = series.strip_prefix(metric);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('{'))
        };
        self.0.iter().filter(|(series, _)| mine(series)).map(|(_, value)| *value).reduce(|a, b| a + b)
    }

    /// The buckets of a histogram without other labels: upper bounds with how many were at most that, in their order.
    fn buckets(&self, metric: &str) -> Vec<(f64, f64)> {
        let bound = |series: &str| -> Option<f64> {
            let labels = series.strip_prefix(metric)?.strip_prefix("_bucket{le=\"")?;
            labels.strip_suffix("\"}")?.parse().ok()
        };
        let mut found: Vec<(f64, f64)> =
            self.0.iter().filter_map(|(series, value)| Some((bound(series)?, *value))).collect();
        found.sort_by(|a, b| a.0.total_cmp(&b.0));
        found
    }
}

/// `name{labels} value`, perhaps with a time behind it.
fn series(line: &str) -> Option<(String, f64)> {
    let end = match line.find('{') {
        Some(_) => line.rfind('}')? + 1,
        None => line.find(' ')?,
    };
    let (name, rest) = line.split_at(end);
    let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
    Some((name.to_owned(), value))
}

/// By how much a counter grew. A process that was started again counts from zero.
pub(super) fn growth(before: Option<f64>, now: Option<f64>) -> Option<f64> {
    let now = now?;
    let before = before.unwrap_or(0.0);
    Some(if now < before { now } else { now - before })
}

/// The value below which `part` (0 to 1) of what several processes measured between two samples lies, by linear
/// interpolation within a bucket as Prometheus's `histogram_quantile` does it. Of the last, open bucket its lower bound.
pub(super) fn quantile(between: &[(&Sample, &Sample)], metric: &str, part: f64) -> Option<f64> {
    let mut counts: Vec<(f64, f64)> = Vec::new();
    for (before, now) in between {
        let earlier: Vec<(f64, f64)> = before.buckets(metric);
        for (bound, n) in now.buckets(metric) {
            let was = earlier.iter().find(|(b, _)| *b == bound).map(|(_, n)| *n);
            let grown = growth(was, Some(n)).unwrap_or(0.0);
            match counts.iter_mut().find(|(b, _)| *b == bound) {
                Some((_, sum)) => *sum += grown,
                None => counts.push((bound, grown)),
            }
        }
    }
    counts.sort_by(|a, b| a.0.total_cmp(&b.0));
    let total = counts.last()?.1;
    if total <= 0.0 {
        return None;
    }
    let rank = total * part;
    let at = counts.iter().position(|(_, n)| *n >= rank)?;
    let (low, below) = if at == 0 { (0.0, 0.0) } else { counts[at - 1] };
    let (high, upto) = counts[at];
    if high.is_infinite() {
        return Some(low);
    }
    if upto <= below { Some(high) } else { Some(low + (high - low) * (rank - below) / (upto - below)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP a_total What a is.\n# TYPE a_total counter\na_total 5\nb{x=\"1\",y=\"two } {\"} 2.5\n\
        b{x=\"2\"} 1 1700000000000\nbb 100\nnonsense\nc NaN\nd_bucket{le=\"0.1\"} 2\nd_bucket{le=\"1\"} 4\n\
        d_bucket{le=\"+Inf\"} 4\nd_sum 1\nd_count 4\ntoo{many=\"\nlate{a=\"1\"}\n";

    #[test]
    fn series_are_read_by_name_and_labels() {
        let sample = Sample::parse(TEXT);
        assert_eq!(sample.get("a_total"), Some(5.0));
        assert_eq!(sample.get("b{x=\"1\",y=\"two } {\"}"), Some(2.5));
        assert_eq!(sample.sum("b"), Some(3.5));
        assert_eq!((sample.sum("a"), sample.get("nonsense")), (None, None));
        assert!(sample.get("c").unwrap().is_nan());
        assert_eq!(sample.buckets("d"), [(0.1, 2.0), (1.0, 4.0), (f64::INFINITY, 4.0)]);
        assert_eq!(Sample::parse("\u{0}\u{1} {} }{"), Sample::default());
    }

    #[test]
    fn a_counter_that_began_anew_counts_from_zero() {
        assert_eq!(growth(Some(3.0), Some(5.0)), Some(2.0));
        assert_eq!(growth(Some(5.0), Some(3.0)), Some(3.0));
        assert_eq!(growth(None, Some(3.0)), Some(3.0));
        assert_eq!(growth(Some(3.0), None), None);
    }

    #[test]
    fn quantiles_are_of_what_was_measured_between() {
        let of = |counts: [u32; 3]| {
            let [a, b, c] = counts;
            Sample::parse(&format!(
                "d_bucket{{le=\"0.1\"}} {a}\nd_bucket{{le=\"1\"}} {b}\nd_bucket{{le=\"+Inf\"}} {c}\n"
            ))
        };
        let (before, now) = (of([100, 100, 100]), of([110, 120, 120]));
        let between = [(&before, &now)];
        assert_eq!(quantile(&between, "d", 0.5), Some(0.1));
        assert_eq!(quantile(&between, "d", 0.25), Some(0.05));
        assert_eq!(quantile(&between, "d", 0.75), Some(0.55));
        assert_eq!(quantile(&[(&now, &now)], "d", 0.5), None, "nothing was measured");
        assert_eq!(quantile(&between, "e", 0.5), None);
        let beyond = of([110, 110, 120]);
        assert_eq!(quantile(&[(&before, &beyond)], "d", 0.99), Some(1.0), "all that is known");
        // Two processes together.
        let both = [(&before, &now), (&before, &beyond)];
        assert_eq!(quantile(&both, "d", 0.5), Some(0.1));
    }
}
