//! `eventpulse transform new`: a project that builds anywhere, since everything of ours that it needs is in it.

use std::{fs, io::ErrorKind, path::Path};

use clap::ValueEnum;

use super::{Error, project, show};

#[derive(clap::Args)]
pub struct Options {
    /// The project's name, and the folder that is made for it.
    name: String,
    #[arg(long, value_enum, default_value = "rust")]
    lang: Language,
}

#[derive(Clone, Copy, ValueEnum)]
enum Language {
    Rust,
    Js,
}

const NAME_BYTES_MAX: usize = 64;

/// What cargo refuses as the name of a library, or knows as another one.
const RESERVED: &[&str] = &[
    "abstract",
    "alloc",
    "as",
    "async",
    "await",
    "become",
    "box",
    "break",
    "const",
    "continue",
    "core",
    "crate",
    "do",
    "dyn",
    "else",
    "enum",
    "extern",
    "false",
    "final",
    "fn",
    "for",
    "gen",
    "if",
    "impl",
    "in",
    "let",
    "loop",
    "macro",
    "match",
    "mod",
    "move",
    "mut",
    "override",
    "priv",
    "proc-macro",
    "pub",
    "ref",
    "return",
    "self",
    "static",
    "std",
    "struct",
    "super",
    "test",
    "trait",
    "true",
    "try",
    "type",
    "typeof",
    "unsafe",
    "unsized",
    "use",
    "virtual",
    "where",
    "while",
    "yield",
];

pub(super) fn run(options: &Options) -> Result<(), Error> {
    validate(&options.name).map_err(Error::Name)?;
    let files = match options.lang {
        Language::Rust => project::rust(&options.name),
        Language::Js => project::js(&options.name),
    };
    write(Path::new(&options.name), &files)?;
    println!("{} is written; its README.md has the next steps", options.name);
    Ok(())
}

fn validate(name: &str) -> Result<(), String> {
    let refused = |why: &str| Err(format!("`{name}` cannot be a project's name: {why}"));
    if name.len() > NAME_BYTES_MAX {
        return refused("it is too long");
    }
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        return refused("it must begin with a small letter");
    }
    if !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-') {
        return refused("only small letters, digits and dashes may be in it");
    }
    if RESERVED.contains(&name) || project::dependencies().any(|dependency| dependency == name) {
        return refused("that is something else's name in Rust");
    }
    Ok(())
}

/// All files into a new folder.
fn write(folder: &Path, files: &[(String, String)]) -> Result<(), Error> {
    let failed = |path: &Path, source| Error::File { path: show(path), verb: "written", source };
    match fs::create_dir(folder) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            return Err(Error::Name(format!("{} is there already", show(folder))));
        }
        made => made.map_err(|error| failed(folder, error))?,
    }
    for (name, text) in files {
        let path = folder.join(name);
        let parent = path.parent().unwrap_or(folder);
        fs::create_dir_all(parent).map_err(|error| failed(parent, error))?;
        fs::write(&path, text).map_err(|error| failed(&path, error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_cargo_takes() {
        for name in ["a", "my-filter", "x2"] {
            assert_eq!(validate(name), Ok(()), "{name}");
        }
        let long = "a".repeat(65);
        for name in [
            "",
            "A",
            "2x",
            "-a",
            "a b",
            "a/b",
            "../a",
            "ä",
            "a.b",
            "match",
            "test",
            "serde",
            "serde-json",
            &long,
        ] {
            assert!(validate(name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_folder_that_is_there_is_left_alone() {
        let folder = std::env::temp_dir().join(format!("eventpulse-new-test-{}", std::process::id()));
        let files = [("a/b.txt".to_owned(), "1".to_owned())];
        write(&folder, &files).unwrap();
        assert_eq!(fs::read_to_string(folder.join("a/b.txt")).unwrap(), "1");
        let error = write(&folder, &[("a/b.txt".to_owned(), "2".to_owned())]).unwrap_err().to_string();
        assert!(error.ends_with("is there already"), "{error}");
        assert_eq!(fs::read_to_string(folder.join("a/b.txt")).unwrap(), "1");
        fs::remove_dir_all(folder).unwrap();
    }
}
