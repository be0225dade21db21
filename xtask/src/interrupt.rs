//! Ctrl-C, SIGTERM and a closed terminal: the first asks every loop to stop and clean up, the second ends the process at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use anyhow::Context as _;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

static REQUESTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Starts to catch the signals. Call it once, before anything that has to be cleaned up exists.
pub(crate) fn install() -> anyhow::Result<()> {
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        // Order matters: the default action is taken only if the flag was set by an earlier signal.
        flag::register_conditional_default(signal, Arc::clone(&REQUESTED)).context("catch signals")?;
        flag::register(signal, Arc::clone(&REQUESTED)).context("catch signals")?;
    }
    Ok(())
}

/// Whether somebody asked this process to stop.
pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// An error once somebody asked this process to stop; for loops and between steps.
pub(crate) fn check() -> anyhow::Result<()> {
    anyhow::ensure!(!requested(), "interrupted");
    Ok(())
}
