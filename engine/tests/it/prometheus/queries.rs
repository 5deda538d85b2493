//! The queries of `monitoring/`, and the names of metrics in them.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

pub(super) fn monitoring() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../monitoring")
}

/// Each with where it stands.
pub(super) fn all() -> Vec<(String, String)> {
    let mut all = dashboard();
    all.extend(rules());
    all
}

/// Those of the dashboard, with Grafana's variables filled in.
pub(super) fn dashboard() -> Vec<(String, String)> {
    let text = fs::read_to_string(monitoring().join("dashboards/eventpulse.json")).expect("the dashboard");
    let board: Value = serde_json::from_str(&text).expect("JSON");
    let mut found = Vec::new();
    for panel in board["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().expect("a query");
            let query = query.replace("$instance", ".*").replace("$__rate_interval", "1m");
            assert!(!query.contains('$'), "a variable that is not filled in: {query}");
            found.push((format!("panel {}", panel["title"]), query));
        }
    }
    found
}

/// Those of the rules. It reads the YAML that stands there: `expr: ...` on a line, or `expr: |` and lines that are further in.
fn rules() -> Vec<(String, String)> {
    let text = fs::read_to_string(monitoring().join("rules/eventpulse.yml")).expect("the rules");
    let mut found = Vec::new();
    let mut name = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let inner = line.trim_start().trim_start_matches("- ");
        if let Some(rest) = inner.strip_prefix("alert: ").or_else(|| inner.strip_prefix("record: ")) {
            name = rest.to_owned();
        }
        let Some(rest) = inner.strip_prefix("expr: ") else { continue };
        let mut query = rest.to_owned();
        if rest == "|" {
            query.clear();
            let indent = line.len() - line.trim_start().len();
            let within = |line: &&str| line.len() - line.trim_start().len() > indent;
            while let Some(more) = lines.next_if(within) {
                query.push_str(more.trim());
                query.push('\n');
            }
        }
        found.push((format!("rule {name}"), query));
    }
    assert!(found.len() > 15, "{}", found.len());
    found
}

/// What the rules record, which is no metric of ours.
pub(super) fn recorded() -> BTreeSet<String> {
    let names = rules().into_iter().filter_map(|(place, _)| place.strip_prefix("rule ").map(str::to_owned));
    names.filter(|name| name.contains(':')).collect()
}

/// The names of metrics in a query: words that are no function, no label, no text and no unit of time.
pub(super) fn names(query: &str) -> BTreeSet<String> {
    const WORDS: [&str; 6] = ["and", "or", "sum", "min", "max", "count"];
    let mut found = BTreeSet::new();
    let mut rest = query;
    while let Some(start) = rest.find(|c: char| c.is_ascii_alphanumeric() || "_:{[\"".contains(c)) {
        rest = &rest[start..];
        // What stands in braces, brackets and quotes names labels, texts and times.
        let closing = match rest.as_bytes()[0] {
            b'{' => Some('}'),
            b'[' => Some(']'),
            b'"' => Some('"'),
            _ => None,
        };
        if let Some(closing) = closing {
            let end = rest[1..].find(closing).map_or(rest.len(), |at| at + 2);
            rest = &rest[end..];
            continue;
        }
        let word = |c: char| c.is_ascii_alphanumeric() || "_:.".contains(c);
        let end = rest.find(|c| !word(c)).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        let number = name.starts_with(|c: char| c.is_ascii_digit());
        // `by (le)` and `on ()` list labels.
        if matches!(name, "by" | "on" | "group_left") {
            rest = after.split_once(')').map_or("", |(_, rest)| rest);
            continue;
        }
        if !number && !WORDS.contains(&name) && !after.trim_start().starts_with('(') {
            found.insert(name.to_owned());
        }
        rest = after;
    }
    found
}

#[test]
fn names_are_read_from_queries() {
    let query = "sum by (le) (rate(a_bucket{x=\"b_total\", y=~\"c|d\"}[5m])) / on () group_left () (e > 0.05)\n  and f:g:rate5m > 14.4 * 0.05";
    let found: Vec<String> = names(query).into_iter().collect();
    assert_eq!(found, ["a_bucket", "e", "f:g:rate5m"]);
    assert_eq!(names("min by (instance) (h) == 0 and sum(i) > 1").len(), 2);
}
