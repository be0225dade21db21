//! `cargo xtask bench`: runs benchmarks and prints their tables.

use anyhow::bail;

/// Flags of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs the command.
pub(crate) fn run(_args: &Args) -> anyhow::Result<()> {
    bail!("`cargo xtask bench` is not built yet")
}
