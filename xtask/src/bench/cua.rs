//! Cua's computer-server as a peer: a fixed version from PyPI in an environment of its own, kept in the user's cache.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;

use crate::command;
use crate::progress::Step;

pub(super) const VERSION: &str = "0.1.25";
/// Later ones of FastAPI don't work with this server.
const FASTAPI: &str = "0.115.12";

/// The Python that has the server, installed if it is not there yet.
pub(super) fn python() -> anyhow::Result<PathBuf> {
    let folder = directories::ProjectDirs::from("dev", "hvkube", "hvkube")
        .context("find the user's cache folder: HOME is not set")?
        .cache_dir()
        .join(format!("bench/cua-{VERSION}"));
    let python = folder.join("bin/python");
    // Written last, so that an installation that broke off is done again.
    let done = folder.join("installed");
    if done.is_file() {
        return Ok(python);
    }
    let step = Step::start("installing cua-computer-server");
    command::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder), &step)?;
    let packages = [format!("cua-computer-server=={VERSION}"), format!("fastapi=={FASTAPI}")];
    command::run(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(packages), &step)?;
    fs::write(&done, "").with_context(|| format!("write {}", done.display()))?;
    step.done();
    Ok(python)
}
