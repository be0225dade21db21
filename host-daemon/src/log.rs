//! The log, on standard error.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use hvkube_host::config::{Log, LogFormat};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, fmt, reload};

/// Changes what is logged while the daemon runs.
pub(crate) struct Level(reload::Handle<EnvFilter, Registry>);

impl Level {
    pub(crate) fn set(&self, log: &Log) {
        match EnvFilter::try_new(&log.level) {
            Ok(filter) => match self.0.reload(filter) {
                Ok(()) => tracing::info!(level = log.level, "log level"),
                Err(error) => tracing::warn!(%error, "can't change the log level"),
            },
            Err(error) => tracing::warn!(%error, level = log.level, "no log level"),
        }
    }
}

/// Starts the log.
pub(crate) fn start(log: &Log) -> anyhow::Result<Level> {
    let filter = EnvFilter::try_new(&log.level).context("log.level")?;
    let (filter, handle) = reload::Layer::new(filter);
    let colours =
        std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(colours);
    let lines = match log.format {
        LogFormat::Full => lines.boxed(),
        LogFormat::Compact => lines.without_time().compact().boxed(),
    };
    tracing_subscriber::registry().with(filter).with(lines).try_init().context("can't start the log")?;
    Ok(Level(handle))
}
