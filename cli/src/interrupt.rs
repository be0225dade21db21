//! Ctrl-C and its relatives.

use std::io;

/// Why the program was asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    Interrupt,
    Terminate,
}

impl Signal {
    /// What shells make of a program that the signal ended.
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }
}

/// Listens for signals from its making on. While there is one, they no longer end the program by themselves, and none is
/// missed between two looks.
#[cfg(unix)]
pub(crate) struct Signals([(Signal, tokio::signal::unix::Signal); 3]);

#[cfg(unix)]
impl Signals {
    pub(crate) fn listen() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self([
            (Signal::Interrupt, signal(SignalKind::interrupt())?),
            (Signal::Terminate, signal(SignalKind::terminate())?),
            (Signal::Terminate, signal(SignalKind::hangup())?),
        ]))
    }

    /// The next one. Safe to use in `select!`.
    pub(crate) async fn next(&mut self) -> Signal {
        std::future::poll_fn(|cx| {
            for (kind, signal) in &mut self.0 {
                if signal.poll_recv(cx).is_ready() {
                    return std::task::Poll::Ready(*kind);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

/// Listens for Ctrl-C from its making on. While there is one, it no longer ends the program by itself.
#[cfg(windows)]
pub(crate) struct Signals(tokio::signal::windows::CtrlC);

#[cfg(windows)]
impl Signals {
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self(tokio::signal::windows::ctrl_c()?))
    }

    /// The next one. Safe to use in `select!`.
    pub(crate) async fn next(&mut self) -> Signal {
        self.0.recv().await;
        Signal::Interrupt
    }
}

/// Resolves when somebody wants the program to end.
pub(crate) async fn wait() -> io::Result<Signal> {
    Ok(Signals::listen()?.next().await)
}
