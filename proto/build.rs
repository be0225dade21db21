//! Compiles the protos with protox, so that no `protoc` is needed, and keeps the descriptors for reflection.

use std::path::PathBuf;
use std::{env, fs};

/// Files whose services are part of the public API; the guest protocol is generated beside it and never reflected.
const PUBLIC: &[&str] = &[
    "hvkube/v1/template.proto",
    "hvkube/v1/pool.proto",
    "hvkube/v1/vm.proto",
    "hvkube/v1/lease.proto",
    "hvkube/v1/desktop.proto",
    "hvkube/v1/host.proto",
    "hvkube/v1/event.proto",
    "hvkube/v1/agent.proto",
    "hvkube/v1/watch.proto",
    "hvkube/v1/secret.proto",
];
const GUEST: &[&str] = &["hvkube/guest/v1/guest.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    println!("cargo:rerun-if-changed=hvkube");
    println!("cargo:rerun-if-changed=third_party");

    // Encoded by the compiler itself: prost's own types do not know options such as `field_behavior` and would drop them.
    let mut compiler = protox::Compiler::new([".", "third_party"])?;
    compiler.include_imports(true).include_source_info(true).open_files(PUBLIC)?;
    fs::write(out.join("public.bin"), compiler.encode_file_descriptor_set())?;
    let public = compiler.file_descriptor_set();
    let guest = protox::compile(GUEST, [".", "third_party"])?;
    let mut all = public;
    for file in all.file.iter_mut().filter(|f| f.package().starts_with("google")) {
        // Their comments hold code fences that rustdoc would take for Rust.
        file.source_code_info = None;
    }
    all.file.extend(guest.file.into_iter().filter(|f| f.package().starts_with("hvkube.guest")));

    tonic_prost_build::configure()
        // Screen and file payloads are handed on without copies.
        .bytes(".hvkube")
        // Equal messages must have equal bytes: a repeated request is known by them.
        .btree_map(".hvkube")
        // Would show the value; the crate has a form of it that does not.
        .skip_debug(["hvkube.v1.CreateSecretRequest"])
        .codec_path("crate::codec::SmallBuffers")
        .include_file("all.rs")
        .compile_fds(all)?;
    Ok(())
}
