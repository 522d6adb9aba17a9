//! Compiles the library that is preloaded into QEMU, so that the program carries it along: a program that is copied to
//! another host has all that it needs.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    let source = PathBuf::from(var("CARGO_MANIFEST_DIR")).join("../preload/src/lib.rs");
    let library = PathBuf::from(var("OUT_DIR")).join("preload.so");
    println!("cargo::rerun-if-changed={}", source.display());
    let mut rustc = Command::new(var("RUSTC"));
    rustc.args(["--edition=2024", "--crate-name=whimbrel_preload", "--crate-type=cdylib"]);
    rustc.args(["-Copt-level=3", "-Cpanic=abort", "-Cstrip=symbols"]);
    if var("HOST") != var("TARGET") {
        rustc.arg(format!("--target={}", var("TARGET")));
    }
    let status = rustc.arg("-o").arg(&library).arg(&source).status().expect("the compiler runs");
    assert!(status.success(), "{} does not compile: {status}", source.display());
}

fn var(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}
