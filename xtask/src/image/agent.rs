//! The guest agent that goes into the image.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};

use super::read;
use crate::cargo;
use crate::progress::Step;

/// A binary that can run in the guest.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) bytes: Vec<u8>,
    pub(super) sha256: String,
}

impl Agent {
    /// Reads the binary, and refuses one that needs a newer glibc than the guest's (`major.minor`).
    pub(super) fn read(path: &Path, glibc: &str) -> anyhow::Result<Self> {
        let bytes = read(path).context("read the guest agent")?;
        let limit =
            version(glibc).with_context(|| format!("`{glibc}` in image.toml is not a glibc version"))?;
        if let Some((major, minor)) = newest_glibc(&bytes)
            && (major, minor) > limit
        {
            bail!(
                "{} needs glibc {major}.{minor}, the image has {glibc}: build it on an older system, or for \
                 x86_64-unknown-linux-musl, and pass it with --agent",
                path.display()
            );
        }
        let sha256 = hex::encode(Sha256::digest(&bytes));
        Ok(Self { bytes, sha256 })
    }
}

/// Builds the workspace's own agent and returns where it is.
pub(super) fn build() -> anyhow::Result<PathBuf> {
    let step = Step::start("building the guest agent");
    let path = cargo::build(&["hvkube-guest"], "guest", &step)?.get("hvkube-guest")?.to_owned();
    step.done();
    Ok(path)
}

/// The newest `GLIBC_x.y` symbol version a binary asks for; none for a static one or a script.
fn newest_glibc(bytes: &[u8]) -> Option<(u32, u32)> {
    const MARK: &[u8] = b"GLIBC_";
    bytes
        .windows(MARK.len())
        .enumerate()
        .filter(|(_, window)| *window == MARK)
        .filter_map(|(at, _)| {
            let rest = &bytes[at + MARK.len()..];
            let end = rest.iter().position(|b| !b.is_ascii_digit() && *b != b'.')?;
            version(std::str::from_utf8(&rest[..end]).ok()?)
        })
        .max()
}

/// `2.36` or `2.36.1` as (2, 36).
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_glibc_counts() {
        assert_eq!(newest_glibc(b"\0GLIBC_2.2.5\0GLIBC_2.34\0GLIBC_2.4\0GLIBC_PRIVATE\0"), Some((2, 34)));
        assert_eq!(newest_glibc(b"#!/bin/sh\n"), None);
    }

    #[test]
    fn an_agent_for_a_newer_system_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent");
        std::fs::write(&path, b"ELF\0GLIBC_2.39\0").unwrap();
        let error = Agent::read(&path, "2.36").unwrap_err().to_string();
        assert!(error.contains("needs glibc 2.39, the image has 2.36"), "{error}");
        assert_eq!(Agent::read(&path, "2.39").unwrap().sha256.len(), 64);
    }
}
