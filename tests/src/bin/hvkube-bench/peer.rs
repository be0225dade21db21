//! The peer: a domain of libvirt with the same guest, saved before the first round.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tokio::process::Command;

/// A libvirt domain.
#[derive(Debug)]
pub(crate) struct Domain<'a>(pub(crate) &'a str);

impl Domain<'_> {
    /// Brings it back from its saved state; returns the time until libvirt says that it runs.
    pub(crate) async fn start(&self) -> anyhow::Result<Duration> {
        self.virsh("start").await
    }

    /// Saves it.
    pub(crate) async fn save(&self) -> anyhow::Result<Duration> {
        self.virsh("managedsave").await
    }

    async fn virsh(&self, verb: &str) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let out = Command::new("virsh")
            .args(["--connect", "qemu:///system", "--quiet", verb, self.0])
            .stdin(Stdio::null())
            .output()
            .await
            .context("start virsh")?;
        let took = began.elapsed();
        ensure!(
            out.status.success(),
            "virsh {verb} {}: {}",
            self.0,
            String::from_utf8_lossy(&out.stderr).trim()
        );
        Ok(took)
    }
}
