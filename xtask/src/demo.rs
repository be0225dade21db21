//! `cargo xtask demo`: runs the whole path once on a real VM and shows what each step took.

use anyhow::bail;

/// Flags of `cargo xtask demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs the command.
pub(crate) fn run(_args: &Args) -> anyhow::Result<()> {
    bail!("`cargo xtask demo` is not built yet")
}
