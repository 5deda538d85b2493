//! Whether bytes are a module that may be a transform, before a compiler sees them. Only the outline is read here; whether
//! the rest is valid the compiler says.

use wasmparser::{ComponentExternalKind, ComponentTypeRef, Encoding, FunctionBody, Parser, Payload, TypeRef};

use super::{Rejected, engines::Class};

/// What a module may consist of, in all its parts together.
struct Outline {
    functions: u64,
    types: u64,
    /// A function of three bytes may declare fifty thousand.
    locals: u64,
    /// Of core modules and components, which may be instantiated in each other.
    instances: u64,
}

impl Outline {
    fn max(class: Class) -> Outline {
        match class {
            Class::Small => Outline { functions: 50_000, types: 10_000, locals: 500_000, instances: 100 },
            Class::Large => {
                Outline { functions: 300_000, types: 100_000, locals: 5_000_000, instances: 1_000 }
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Component,
    /// It carries its world, and is made into a component here.
    CoreModule,
}

const MAGIC: &[u8; 4] = b"\0asm";

/// Cheap enough to ask before a process is started.
pub(super) fn is_wasm(wasm: &[u8]) -> Result<(), Rejected> {
    if wasm.starts_with(MAGIC) {
        return Ok(());
    }
    let text = wasm.trim_ascii_start();
    let hint = if text.starts_with(b"(module") || text.starts_with(b"(component") {
        ": it is WebAssembly text; `wasm-tools parse` makes it binary"
    } else {
        ": it does not begin with `\\0asm`"
    };
    Err(rejected("not_wasm", format!("this is not a WebAssembly module{hint}")))
}

/// # Errors
/// Says what is wrong, for the module's author.
pub(super) fn check(wasm: &[u8], class: Class, memory_bytes_max: usize) -> Result<Form, Rejected> {
    is_wasm(wasm)?;
    let mut reader = Reader {
        max: Outline::max(class),
        seen: Outline { functions: 0, types: 0, locals: 0, instances: 0 },
        memory_bytes_max,
        depth: 0,
        form: Form::CoreModule,
        has_world: false,
        has_transform: false,
        exports: Vec::new(),
    };
    for payload in Parser::new(0).parse_all(wasm) {
        reader.read(&payload.map_err(|error| malformed(&error))?)?;
    }
    reader.end()
}

struct Reader {
    max: Outline,
    seen: Outline,
    memory_bytes_max: usize,
    /// 0 in the outermost module or component.
    depth: u32,
    form: Form,
    has_world: bool,
    has_transform: bool,
    /// The first few of a component, for the refusal.
    exports: Vec<String>,
}

impl Reader {
    fn read(&mut self, payload: &Payload<'_>) -> Result<(), Rejected> {
        match payload {
            Payload::Version { encoding, .. } if self.depth == 0 => {
                self.form = match encoding {
                    Encoding::Component => Form::Component,
                    Encoding::Module => Form::CoreModule,
                };
            }
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => self.depth += 1,
            Payload::End(_) => self.depth = self.depth.saturating_sub(1),
            Payload::TypeSection(section) => self.types(section.count())?,
            Payload::CoreTypeSection(section) => self.types(section.count())?,
            Payload::ComponentTypeSection(section) => self.types(section.count())?,
            Payload::InstanceSection(section) => self.instances(section.count())?,
            Payload::ComponentInstanceSection(section) => self.instances(section.count())?,
            Payload::FunctionSection(section) => {
                self.seen.functions += u64::from(section.count());
                within("functions", self.seen.functions, self.max.functions)?;
            }
            Payload::CodeSectionEntry(body) => self.locals(body)?,
            Payload::MemorySection(section) => {
                for memory in section.clone() {
                    let memory = memory.map_err(|error| malformed(&error))?;
                    let page = 1_u64.checked_shl(memory.page_size_log2.unwrap_or(16)).unwrap_or(u64::MAX);
                    self.memory(memory.initial.saturating_mul(page))?;
                }
            }
            Payload::ImportSection(section) if self.depth == 0 => {
                for import in section.clone().into_imports() {
                    let import = import.map_err(|error| malformed(&error))?;
                    let known = import.module == "$root" && import.name == "log"
                        || import.module.starts_with("cm32p2")
                        || import.module.starts_with(TYPES);
                    if !known || !matches!(import.ty, TypeRef::Func(_) | TypeRef::FuncExact(_)) {
                        return Err(forbidden(&format!("{}` `{}", import.module, import.name)));
                    }
                }
            }
            Payload::ComponentImportSection(section) if self.depth == 0 => {
                for import in section.clone() {
                    let import = import.map_err(|error| malformed(&error))?;
                    // A world that uses types of an interface imports them by name, too. They bring nothing in.
                    let types = matches!(import.ty, ComponentTypeRef::Type(_));
                    if !(types || import.name.name == "log" || import.name.name.starts_with(TYPES)) {
                        return Err(forbidden(import.name.name));
                    }
                }
            }
            Payload::ComponentExportSection(section) if self.depth == 0 => {
                for export in section.clone() {
                    let export = export.map_err(|error| malformed(&error))?;
                    self.has_transform |=
                        export.name.name == "transform" && export.kind == ComponentExternalKind::Func;
                    if self.exports.len() < 5 {
                        self.exports.push(format!("`{}`", export.name.name));
                    }
                }
            }
            Payload::CustomSection(section) if self.depth == 0 => {
                self.has_world |= section.name().starts_with("component-type");
            }
            _ => {}
        }
        Ok(())
    }

    fn types(&mut self, count: u32) -> Result<(), Rejected> {
        self.seen.types += u64::from(count);
        within("types", self.seen.types, self.max.types)
    }

    fn instances(&mut self, count: u32) -> Result<(), Rejected> {
        self.seen.instances += u64::from(count);
        within("instances", self.seen.instances, self.max.instances)
    }

    fn locals(&mut self, body: &FunctionBody<'_>) -> Result<(), Rejected> {
        for group in body.get_locals_reader().map_err(|error| malformed(&error))? {
            let (count, _) = group.map_err(|error| malformed(&error))?;
            self.seen.locals += u64::from(count);
            within("local variables", self.seen.locals, self.max.locals)?;
        }
        Ok(())
    }

    fn memory(&self, bytes: u64) -> Result<(), Rejected> {
        if bytes <= self.memory_bytes_max as u64 {
            return Ok(());
        }
        let message = format!(
            "the module wants {} MiB of memory from the start, and may have {}",
            bytes.div_ceil(1 << 20),
            self.memory_bytes_max >> 20
        );
        Err(rejected("memory_over_limit", message))
    }

    fn end(self) -> Result<Form, Rejected> {
        let message = match self.form {
            Form::CoreModule if self.has_world => return Ok(self.form),
            Form::Component if self.has_transform => return Ok(self.form),
            Form::CoreModule => "no transform export found: this core module does not carry its world. Build it with the crate \
                 `eventpulse-transform` or another generator for WIT, or upload a component"
                .to_owned(),
            Form::Component if self.exports.is_empty() => {
                "no transform export found: the component exports nothing".to_owned()
            }
            Form::Component => format!(
                "no transform export found: the component exports {}, and not the function `transform`",
                self.exports.join(", ")
            ),
        };
        Err(rejected("no_transform_export", message))
    }
}

/// The interface of the contract that holds types and nothing else.
const TYPES: &str = "eventpulse:transform/types@";

fn forbidden(name: &str) -> Rejected {
    let mut message = format!(
        "the module imports `{}`, and a transform has nothing but `log`: no clock, no randomness, no files, no network",
        super::state::cut(name, 200)
    );
    if name.starts_with("wasi") {
        message.push_str(
            ". Build it without WASI: Rust for the target `wasm32-unknown-unknown`; componentize-js with `disableFeatures: \
             ['stdio', 'random', 'clocks', 'http', 'fetch-event']`; componentize-py with `-s`",
        );
    }
    rejected("forbidden_import", message)
}

fn within(what: &str, count: u64, max: u64) -> Result<(), Rejected> {
    if count <= max {
        return Ok(());
    }
    Err(rejected("too_complex", format!("the module has more than {max} {what}")))
}

fn malformed(error: &wasmparser::BinaryReaderError) -> Rejected {
    let message = format!("the module is damaged: {} (at byte {})", error.message(), error.offset());
    rejected("does_not_compile", message)
}

pub(super) fn rejected(code: &'static str, message: String) -> Rejected {
    Rejected { code, message }
}

#[cfg(test)]
mod tests {
    use eventpulse_testkit::guests;

    use super::*;

    const MIB_64: usize = 64 << 20;

    fn code(wasm: &[u8]) -> &'static str {
        check(wasm, Class::Small, MIB_64).unwrap_err().code
    }

    #[test]
    fn both_forms_are_taken() {
        let wit = include_str!("../../../sdk-wasm/wit/transform.wit");
        assert_eq!(check(&guests::echo(), Class::Small, MIB_64).unwrap(), Form::Component);
        assert_eq!(check(&guests::core_echo(wit), Class::Small, MIB_64).unwrap(), Form::CoreModule);
    }

    #[test]
    fn the_first_forbidden_import_is_named() {
        let refused = check(&guests::imports_wasi(), Class::Small, MIB_64).unwrap_err();
        assert_eq!(refused.code, "forbidden_import");
        for part in ["wasi:cli/environment@0.2.6", "disableFeatures", "-s", "wasm32-unknown-unknown"] {
            assert!(refused.message.contains(part), "{refused}");
        }
        let refused = check(&guests::imports_wasi_preview1(), Class::Small, MIB_64).unwrap_err();
        assert!(refused.message.contains("`wasi_snapshot_preview1` `fd_write`"), "{refused}");
    }

    #[test]
    fn every_refusal_has_its_code() {
        assert_eq!(code(b""), "not_wasm");
        assert_eq!(code(b"(module)"), "not_wasm");
        assert_eq!(code(b"MZ\x90\0"), "not_wasm");
        assert_eq!(code(&guests::exports_nothing()), "no_transform_export");
        assert_eq!(code(&guests::core_without_world()), "no_transform_export");
        assert_eq!(code(&guests::echo_with_pages(1025)), "memory_over_limit");
        assert!(check(&guests::echo_with_pages(1024), Class::Small, MIB_64).is_ok());
        assert_eq!(code(&guests::many_functions(1_000_000)), "too_complex");
        assert_eq!(code(&guests::code_bomb(100)), "too_complex");
        let echo = guests::echo();
        for cut in [5, 8, 20, echo.len() / 2, echo.len() - 1] {
            // A section that ends early may also have lost the export.
            let code = code(&echo[..cut]);
            assert!(["does_not_compile", "no_transform_export"].contains(&code), "{cut}: {code}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_bring_the_reader_down(mut bytes: Vec<u8>, at in 0..100_usize) {
            let mut whole = b"\0asm\x0d\0\x01\0".to_vec();
            whole.append(&mut bytes);
            let _ = check(&whole, Class::Small, MIB_64);
            let mut echo = guests::echo();
            let place = at * echo.len() / 100;
            echo[place] ^= 0xff;
            let _ = check(&echo, Class::Small, MIB_64);
        }
    }
}
