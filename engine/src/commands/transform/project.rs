//! The files of a new project: the SDK, and the example that the tests of this repository build as well. Nothing is
//! published, so all of it is in the binary.

macro_rules! embedded {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_str!(concat!("../../../../sdk-wasm/", $path)))),*]
    };
}

/// The SDK, under its own names.
const SDK: &[(&str, &str)] = embedded![
    "Cargo.toml",
    "rustfmt.toml",
    "src/arena.rs",
    "src/bindings.rs",
    "src/context.rs",
    "src/export.rs",
    "src/lib.rs",
    "src/log.rs",
    "src/outcome.rs",
    "src/payload.rs",
    "wit/transform.wit",
];

const LOCK: &str = include_str!("../../../../sdk-wasm/Cargo.lock");

/// Files that stand in the project as they are in the example.
const JS: &[(&str, &str)] = embedded![
    "examples/js/build.mjs",
    "examples/js/change.js",
    "examples/js/change.test.js",
    "examples/js/event.json",
    "examples/js/package-lock.json",
    "examples/js/package.json",
    "examples/js/transform.js",
];

const RUST_README: &str = include_str!("../../../../sdk-wasm/template/README.rust.md");
const JS_README: &str = include_str!("../../../../sdk-wasm/template/README.js.md");
const WIT: &str = include_str!("../../../../sdk-wasm/wit/transform.wit");

/// The example that becomes a new project in Rust.
const MANIFEST: &str = include_str!("../../../../sdk-wasm/examples/filter/Cargo.toml");
const SOURCE: &str = include_str!("../../../../sdk-wasm/examples/filter/src/lib.rs");
const EVENT: &str = include_str!("../../../../sdk-wasm/examples/filter/event.json");
const BUILD: &str = include_str!("../../../../sdk-wasm/examples/build.rs");

const EXAMPLE: &str = "eventpulse-example-filter";
const EXAMPLES: &str = "eventpulse-example-";

type Files = Vec<(String, String)>;

pub(super) fn rust(name: &str) -> Files {
    let (_, profile) = sdk_manifest();
    let manifest = MANIFEST
        .replace(EXAMPLE, name)
        .replace("build = \"../build.rs\"\n", "")
        .replace("name = \"filter\"\n", "")
        .replace("path = \"../..\"", "path = \"sdk\"");
    let readme = RUST_README.replace("NAME", name).replace("FILE", &name.replace('-', "_"));
    let mut files = vec![
        ("Cargo.toml".to_owned(), format!("{manifest}\n[workspace]\n\n{profile}")),
        ("Cargo.lock".to_owned(), lock(LOCK, name)),
        ("build.rs".to_owned(), BUILD.to_owned()),
        ("src/lib.rs".to_owned(), SOURCE.to_owned()),
        ("event.json".to_owned(), EVENT.to_owned()),
        ("README.md".to_owned(), readme),
        (".gitignore".to_owned(), "target/\n".to_owned()),
    ];
    for (path, text) in SDK {
        let text = if *path == "Cargo.toml" { sdk_manifest().0 } else { text };
        files.push((format!("sdk/{path}"), text.to_owned()));
    }
    files
}

pub(super) fn js(name: &str) -> Files {
    let mut files = vec![
        ("wit/transform.wit".to_owned(), WIT.to_owned()),
        ("README.md".to_owned(), JS_README.replace("NAME", name)),
        (".gitignore".to_owned(), "node_modules/\n*.wasm\n".to_owned()),
    ];
    for (path, text) in JS {
        let file = path.strip_prefix("examples/js/").unwrap_or(path);
        let text = match file {
            "package.json" | "package-lock.json" => {
                text.replace("\"name\": \"transform\"", &format!("\"name\": \"{name}\""))
            }
            _ => (*text).to_owned(),
        };
        files.push((file.to_owned(), text));
    }
    files
}

/// Names of everything that a project in Rust is built of.
pub(super) fn dependencies() -> impl Iterator<Item = String> {
    let names = LOCK.lines().filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'));
    names.flat_map(|name| [name.to_owned(), name.replace('_', "-")])
}

/// The SDK's own manifest, and what this repository's workspace adds to it: the profile, which belongs to the root.
fn sdk_manifest() -> (&'static str, &'static str) {
    let manifest = SDK.iter().find(|(path, _)| *path == "Cargo.toml").map_or("", |(_, text)| text);
    let own = manifest.find("\n[workspace]").unwrap_or(manifest.len());
    let profile = manifest.find("[profile.release]").unwrap_or(manifest.len());
    (&manifest[..own], &manifest[profile..])
}

/// The lock file as cargo would write it for the project: of the examples there is one, under the project's name.
fn lock(text: &str, name: &str) -> String {
    let mut blocks = text.split("\n[[package]]\n");
    let head = blocks.next().unwrap_or_default();
    let mut packages: Vec<String> = blocks
        .filter(|block| block_name(block) == EXAMPLE || !block_name(block).starts_with(EXAMPLES))
        .map(|block| format!("{}\n", block.replace(EXAMPLE, name).trim_end()))
        .collect();
    packages.sort_by(|a, b| block_name(a).cmp(block_name(b)));
    packages.iter().fold(head.to_owned(), |text, block| format!("{text}\n[[package]]\n{block}"))
}

fn block_name(block: &str) -> &str {
    block.strip_prefix("name = \"").and_then(|rest| rest.split('"').next()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    fn folder(path: &str) -> BTreeSet<String> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk-wasm").join(path);
        let names =
            fs::read_dir(folder).expect("the SDK is there").map(|entry| entry.expect("readable").file_name());
        names.map(|name| format!("{path}/{}", name.to_string_lossy())).collect()
    }

    fn listed(files: &[(&str, &str)], under: &str) -> BTreeSet<String> {
        let paths = files.iter().map(|(path, _)| (*path).to_owned());
        paths.filter(|path| path.starts_with(&format!("{under}/"))).collect()
    }

    #[test]
    fn everything_of_the_sdk_is_listed() {
        for under in ["src", "wit"] {
            assert_eq!(listed(SDK, under), folder(under));
        }
        let mut js = folder("examples/js");
        // What npm and the build made.
        js.retain(|path| !path.ends_with("node_modules") && !path.ends_with(".wasm"));
        assert_eq!(listed(JS, "examples/js"), js);
    }

    #[test]
    fn the_manifests_are_those_of_a_project() {
        let files = rust("my-filter");
        let text = |name: &str| &files.iter().find(|(path, _)| path == name).expect(name).1;
        let manifest: toml::Table = text("Cargo.toml").parse().expect("valid TOML");
        assert_eq!(manifest["package"]["name"].as_str(), Some("my-filter"));
        assert_eq!(manifest["dependencies"]["eventpulse-transform"]["path"].as_str(), Some("sdk"));
        assert_eq!(manifest["profile"]["release"]["lto"].as_bool(), Some(true));
        assert!(manifest.contains_key("workspace") && !text("Cargo.toml").contains(".."));
        let sdk: toml::Table = text("sdk/Cargo.toml").parse().expect("valid TOML");
        assert!(!sdk.contains_key("workspace") && !sdk.contains_key("profile"));
        assert!(text("README.md").contains("my_filter.wasm") && !text("README.md").contains("NAME"));
    }

    #[test]
    fn the_lock_is_the_projects() {
        let lock: toml::Table = lock(LOCK, "zebra").parse().expect("valid TOML");
        let packages = lock["package"].as_array().expect("a list");
        let names: Vec<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
        assert!(
            names.is_sorted() && names.contains(&"zebra") && names.contains(&"eventpulse-transform"),
            "{names:?}"
        );
        assert!(names.iter().all(|name| !name.starts_with(EXAMPLES)), "{names:?}");
    }

    #[test]
    fn a_project_in_javascript_has_its_name_and_the_contract() {
        let files = js("my-filter");
        let text = |name: &str| &files.iter().find(|(path, _)| path == name).expect(name).1;
        for name in ["package.json", "package-lock.json"] {
            let package: serde_json::Value = serde_json::from_str(text(name)).expect("valid JSON");
            assert_eq!(package["name"], "my-filter");
        }
        assert!(text("wit/transform.wit").contains("world transformer"));
    }
}
