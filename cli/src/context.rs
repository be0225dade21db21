//! What a command works with: settings, the connection, a way to tell people things.

use std::fmt;
use std::io::{IsTerminal as _, Write as _};
use std::sync::Mutex;
use std::time::Duration;

use hvkube_sdk::Client;
use tokio::sync::OnceCell;

use crate::args::{Format, Global, OutputArgs};
use crate::progress::Bar;
use crate::report::Failure;

pub(crate) struct Context {
    global: Global,
    format: Option<Format>,
    client: OnceCell<Client>,
    // What people should know when they interrupt now.
    afterthought: Mutex<Option<String>>,
}

impl Context {
    pub(crate) fn new(global: Global, format: Option<Format>) -> Self {
        Self { global, format, client: OnceCell::new(), afterthought: Mutex::new(None) }
    }

    /// Connects at the first use, so that commands without a daemon need none.
    pub(crate) async fn client(&self) -> Result<&Client, Failure> {
        self.client.get_or_try_init(|| async { Ok(self.connect().await?) }).await
    }

    /// The connection, if one was made.
    pub(crate) fn connected(&self) -> Option<&Client> {
        self.client.get()
    }

    async fn connect(&self) -> hvkube_sdk::Result<Client> {
        let mut builder = Client::builder();
        if let Some(endpoint) = &self.global.endpoint {
            builder = builder.endpoint(endpoint);
        }
        if let Some(token) = &self.global.token {
            builder = builder.token(token);
        }
        if let Some(file) = &self.global.token_file {
            builder = builder.token_file(file);
        }
        builder.connect().await
    }

    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.global.timeout
    }

    /// The command's own format, else the one before the command, else tables.
    pub(crate) fn format(&self, output: OutputArgs) -> Format {
        output.format.or(self.format).unwrap_or(Format::Table)
    }

    /// Tells people something that is no data.
    pub(crate) fn note(&self, text: impl fmt::Display) {
        if !self.global.quiet {
            // Nobody is left to tell when standard error is gone.
            let _ = writeln!(anstream::stderr(), "{text}");
        }
    }

    /// Progress of something that takes a while.
    pub(crate) fn progress(&self, what: impl Into<String>) -> Bar {
        Bar::new(what.into(), self.global.quiet, std::io::stderr().is_terminal())
    }

    /// Is shown when the command is interrupted from now on.
    pub(crate) fn when_interrupted(&self, text: Option<String>) {
        *self.afterthought.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = text;
    }

    pub(crate) fn afterthought(&self) -> Option<String> {
        self.afterthought.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
    }
}
