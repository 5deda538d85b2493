//! What is checked in is what the contract makes.

use std::{fs, path::Path};

use wit_bindgen_core::{Files, wit_parser::Resolve};

#[test]
fn the_bindings_are_those_of_the_contract() {
    let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let made = generate(&sdk.join("wit"));
    let file = sdk.join("src/bindings.rs");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&file, &made).expect("writable");
    }
    let checked_in = fs::read_to_string(&file).expect("the bindings are there");
    assert!(
        checked_in == made,
        "src/bindings.rs is not of this contract: run `UPDATE=1 cargo test --manifest-path sdk-wasm/bindings/Cargo.toml`"
    );
}

fn generate(wit: &Path) -> String {
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_path(wit).expect("the contract can be read");
    let world = resolve.select_world(&[package], Some("transformer")).expect("it has that world");
    let mut generator = wit_bindgen_rust::Opts {
        format: true,
        pub_export_macro: true,
        export_macro_name: Some("export_transformer".to_owned()),
        default_bindings_module: Some("eventpulse_transform::bindings".to_owned()),
        runtime_path: Some("::eventpulse_transform::private::runtime".to_owned()),
        ..Default::default()
    }
    .build();
    let mut files = Files::default();
    wit_bindgen_core::WorldGenerator::generate(&mut generator, &mut resolve, world, &mut files)
        .expect("generated");
    let (_, bytes) = files.iter().next().expect("one file");
    format!("// Generated from wit/transform.wit; see bindings/.\n{}", String::from_utf8_lossy(bytes))
}
