//! Rules about the source itself. A rule worth having is a test.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Which stages a stage may import. `model`, `config`, `metrics`, `failpoint`, `huge_pages` and `logs` are everybody's.
const ARROWS: &[(&str, &[&str])] = &[
    ("config", &[]),
    ("model", &[]),
    ("metrics", &[]),
    ("failpoint", &[]),
    ("logs", &["config"]),
    ("huge_pages", &[]),
    ("store", &["model"]),
    ("stream", &[]),
    ("ingest", &["store", "stream"]),
    ("lane", &[]),
    ("trace", &[]),
    ("transform", &[]),
    // What was uploaded is compiled for its row.
    ("compile", &["store", "transform"]),
    // An attempt is judged into the row that records it.
    ("deliver", &["store"]),
    ("settle", &["store", "stream"]),
    ("retry", &["store", "stream"]),
    ("recover", &["store", "stream"]),
    ("dispatch", &["deliver", "ingest", "lane", "retry", "settle", "store", "stream", "trace", "transform"]),
    // It checks URLs and makes secrets, and a test of a webhook is a call without a dispatcher. A new round ends by the
    // schedule's arithmetic.
    ("http", &["compile", "deliver", "ingest", "retry", "store", "stream", "trace", "transform"]),
    (
        "engine",
        &[
            "compile",
            "dispatch",
            "http",
            "ingest",
            "recover",
            "retry",
            "store",
            "stream",
            "trace",
            "transform",
        ],
    ),
    ("dev", &["deliver", "engine", "store"]),
    // Whatever reads what comes from outside.
    ("fuzz", &["deliver", "ingest", "stream", "transform"]),
    ("commands", &["store", "stream", "transform"]),
];

const COMMON: &[&str] = &["model", "config", "metrics", "failpoint", "huge_pages", "logs"];

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("the source is there") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

fn engine_src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The stage a file belongs to: its folder, or its own name at the top.
fn stage(path: &Path) -> String {
    let relative = path.strip_prefix(engine_src()).expect("under src");
    let first = relative.components().next().expect("a name").as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// Stages named after `crate::` anywhere, and in the braces of `use crate::{...}`.
fn imports(source: &str, stages: &BTreeSet<&str>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in source.match_indices("crate::") {
        let rest = &source[at + "crate::".len()..];
        let list = match rest.strip_prefix('{') {
            Some(braced) => top_level(braced),
            None => vec![rest],
        };
        for item in list {
            let name: String =
                item.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if stages.contains(name.as_str()) {
                found.insert(name);
            }
        }
    }
    found
}

/// The items of a brace, split at its own commas.
fn top_level(braced: &str) -> Vec<&str> {
    let (mut depth, mut start, mut items) = (0, 0, Vec::new());
    for (i, c) in braced.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                items.push(&braced[start..i]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                items.push(&braced[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    items
}

#[test]
fn stages_import_along_the_arrows_only() {
    let stages: BTreeSet<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for path in sources(&engine_src()) {
        let from = stage(&path);
        if from == "lib" || from == "main" {
            continue;
        }
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == from) else {
            panic!("{} is in no stage that ARROWS knows", path.display());
        };
        seen.insert(from.clone());
        for to in imports(&fs::read_to_string(&path).expect("readable"), &stages) {
            if to != from && !allowed.contains(&to.as_str()) && !COMMON.contains(&to.as_str()) {
                wrong.push(format!("{}: {from} -> {to}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "wrong arrows:\n{}", wrong.join("\n"));
    assert_eq!(seen.len(), ARROWS.len(), "ARROWS names a stage that is gone");
}

#[test]
fn the_import_reader_reads_imports() {
    let stages = BTreeSet::from(["store", "stream", "lane", "http"]);
    let source = "use crate::{\n    store::{self, Error},\n    stream,\n};\nfn f() { crate::lane::x() }";
    let found: Vec<String> = imports(source, &stages).into_iter().collect();
    assert_eq!(found, ["lane", "store", "stream"]);
}

#[test]
fn sql_lives_in_store_alone() {
    for path in sources(&engine_src()) {
        if stage(&path) == "store" {
            continue;
        }
        let source = fs::read_to_string(&path).expect("readable");
        for word in ["SELECT ", "INSERT INTO", "DELETE FROM"] {
            assert!(!source.contains(word), "{} holds SQL", path.display());
        }
    }
}

#[test]
fn every_source_file_says_what_it_owns() {
    for path in sources(Path::new(env!("CARGO_MANIFEST_DIR"))) {
        let source = fs::read_to_string(&path).expect("readable");
        assert!(source.starts_with("//!"), "{} does not begin with what it is about", path.display());
    }
}

#[test]
fn files_hold_one_idea() {
    for path in sources(&engine_src()) {
        let lines = fs::read_to_string(&path).expect("readable").lines().count();
        assert!(lines <= 450, "{} has {lines} lines: it usually holds two ideas then", path.display());
    }
}

/// What is said to be shown by a test must have that test.
#[test]
fn promises_name_tests_that_are_there() {
    let engine = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tests: String = sources(&engine.join("tests"))
        .iter()
        .map(|path| fs::read_to_string(path).expect("readable"))
        .collect();
    let guarantees = fs::read_to_string(engine.join("../docs/guarantees.md")).expect("readable");
    let mut named = 0;
    for line in guarantees.lines().filter(|line| line.starts_with("Shown by ")) {
        for name in line.split('`').skip(1).step_by(2) {
            assert!(tests.contains(&format!("fn {name}(")), "docs/guarantees.md names no test: {name}");
            named += 1;
        }
    }
    assert!(named > 30, "{named}");
}
