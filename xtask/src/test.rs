//! `cargo xtask test`: runs every test of the workspace, those on real VMs included.

use anyhow::bail;

/// Flags of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs the command.
pub(crate) fn run(_args: &Args) -> anyhow::Result<()> {
    bail!("`cargo xtask test` is not built yet")
}
