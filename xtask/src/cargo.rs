//! Building this workspace's programs, and learning where cargo put them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use crate::command;
use crate::progress::Step;

/// The workspace's folder: xtask only ever runs out of its checkout.
pub(crate) fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// The cargo that runs us, in the workspace.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace());
    // `cargo xtask` sets them for us alone; a build that sees them differs from the user's own and is done again.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&name);
        }
    }
    cargo
}

/// Programs by name.
#[derive(Debug)]
pub(crate) struct Programs(BTreeMap<String, PathBuf>);

impl Programs {
    /// Those of a folder, built earlier.
    ///
    /// # Errors
    /// When one of them is not there.
    pub(crate) fn in_folder(folder: &Path, names: &[&str]) -> anyhow::Result<Self> {
        let folder = std::path::absolute(folder).context("find the folder of programs")?;
        let find = |name: &&str| {
            let path = folder.join(name);
            anyhow::ensure!(path.is_file(), "there is no {}", path.display());
            Ok(((*name).to_owned(), path))
        };
        Ok(Self(names.iter().map(find).collect::<anyhow::Result<_>>()?))
    }

    /// Where one is.
    ///
    /// # Errors
    /// When it was not among those that were built.
    pub(crate) fn get(&self, name: &str) -> anyhow::Result<&Path> {
        self.0.get(name).map(PathBuf::as_path).with_context(|| format!("cargo built no program {name}"))
    }
}

/// Builds the programs of these packages with a profile.
///
/// # Errors
/// When the build fails.
pub(crate) fn build(packages: &[&str], profile: &str, step: &Step) -> anyhow::Result<Programs> {
    let with_arguments = || {
        let mut cargo = cargo();
        cargo.args(["build", "--bins", "--profile", profile]);
        for package in packages {
            cargo.args(["--package", package]);
        }
        cargo
    };
    // Twice: once to show how it goes, then, with nothing left to do, to learn where the programs are.
    command::run(&mut with_arguments(), step)?;
    let messages = command::output(with_arguments().args(["--quiet", "--message-format=json"]))?;
    Ok(Programs(executables(&messages)))
}

/// The platform that this runs on, as `rustc` names it.
///
/// # Errors
/// When `rustc` does not say.
pub(crate) fn host() -> anyhow::Result<String> {
    let text = command::output(Command::new("rustc").current_dir(workspace()).arg("-vV"))?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc -vV names no host")
}

/// The programs named in cargo's JSON messages.
pub(crate) fn executables(messages: &str) -> BTreeMap<String, PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|message| {
            let name = message["target"]["name"].as_str()?;
            Some((name.to_owned(), PathBuf::from(message["executable"].as_str()?)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_says_where_programs_are() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"serde"},"executable":null}"#,
            "\nnot json\n",
            r#"{"reason":"compiler-artifact","target":{"name":"hvkube"},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"hvkube"},"executable":"/t/debug/hvkube"}"#,
        );
        let programs = Programs(executables(messages));
        assert_eq!(programs.get("hvkube").unwrap(), Path::new("/t/debug/hvkube"));
        assert_eq!(programs.get("serde").unwrap_err().to_string(), "cargo built no program serde");
    }
}
