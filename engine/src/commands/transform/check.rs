//! `eventpulse transform check`: what a module is, and whether it would be taken.

use std::path::PathBuf;

use wasmparser::{Encoding, Parser, Payload};

use super::{Error, hosted, read};
use crate::config::Config;

#[derive(clap::Args)]
pub struct Options {
    /// The module's file: a component, or a core module as cargo writes it.
    module: PathBuf,
}

const PAGE_BYTES: u64 = 64 << 10;

pub(super) async fn run(config: &Config, options: &Options) -> Result<(), Error> {
    let wasm = read(&options.module)?;
    // Of what cannot be read the host says why.
    if let Some(outline) = Outline::of(&wasm) {
        let imports = if outline.imports.is_empty() { "none".to_owned() } else { outline.imports.join(", ") };
        println!("form     {}", outline.form);
        println!("size     {} bytes", wasm.len());
        println!("imports  {imports}");
        println!("memory   {} KiB at the start", outline.memory / 1024);
    }
    hosted(config, &options.module).await?;
    println!("state    ready");
    Ok(())
}

struct Outline {
    form: &'static str,
    /// Of the outermost module or component.
    imports: Vec<String>,
    /// Of all memories in it.
    memory: u64,
}

impl Outline {
    fn of(wasm: &[u8]) -> Option<Outline> {
        let mut outline = Outline { form: "", imports: Vec::new(), memory: 0 };
        let mut depth = 0_u32;
        for payload in Parser::new(0).parse_all(wasm) {
            match payload.ok()? {
                Payload::Version { encoding, .. } => {
                    depth += 1;
                    if depth == 1 {
                        outline.form = match encoding {
                            Encoding::Module => "core module",
                            Encoding::Component => "component",
                        };
                    }
                }
                Payload::End(_) => depth = depth.checked_sub(1)?,
                Payload::ComponentImportSection(section) if depth == 1 => {
                    for import in section {
                        outline.imports.push(import.ok()?.name.name.to_owned());
                    }
                }
                Payload::ImportSection(section) if depth == 1 => {
                    for import in section.into_imports() {
                        let import = import.ok()?;
                        outline.imports.push(format!("{} {}", import.module, import.name));
                    }
                }
                Payload::MemorySection(section) => {
                    for memory in section {
                        outline.memory =
                            outline.memory.saturating_add(memory.ok()?.initial.saturating_mul(PAGE_BYTES));
                    }
                }
                _ => {}
            }
        }
        Some(outline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outline_of_a_core_module_and_of_a_component() {
        let core = wat::parse_str(r#"(module (import "$root" "log" (func)) (memory 3))"#).unwrap();
        let outline = Outline::of(&core).unwrap();
        assert_eq!((outline.form, outline.memory), ("core module", 3 * PAGE_BYTES));
        assert_eq!(outline.imports, ["$root log"]);
        let text = r#"(component (import "log" (func)) (core module (import "a" "b" (func)) (memory 1)))"#;
        let outline = Outline::of(&wat::parse_str(text).unwrap()).unwrap();
        assert_eq!((outline.form, outline.memory), ("component", PAGE_BYTES));
        assert_eq!(outline.imports, ["log"]);
        assert!(Outline::of(b"no module").is_none());
    }
}
