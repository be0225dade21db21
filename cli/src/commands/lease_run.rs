//! `hvkube lease run POOL -- COMMAND`: a desktop for as long as a local command runs.
//!
//! The command belongs to the same terminal, so Ctrl-C reaches it by itself; this program then waits for it, and gives
//! the desktop back whatever happened. A second signal, or one before the command runs, ends the wait.

use std::process::{ExitCode, ExitStatus};

use clap::Args;
use hvkube_sdk::Desktop;
use tokio::process::{Child, Command};

use crate::commands::lease::{Fate, Wish, standing};
use crate::context::Context;
use crate::interrupt::{Signal, Signals};
use crate::output::human;
use crate::report::{Failure, Outcome};

const AFTER: &str = "\
The command finds the lease in HVKUBE_LEASE and the VM in HVKUBE_VM, both good wherever hvkube wants a VM:

  hvkube lease run browser-pool -- sh -c 'hvkube vm screenshot $HVKUBE_LEASE -o now.png'

The lease is renewed meanwhile. When it is lost, the command is told to end. Ends with the command's own code.";

#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub(crate) struct Run {
    #[command(flatten)]
    wish: Wish,
    #[command(flatten)]
    fate: Fate,
    /// Command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub(crate) async fn run(context: &Context, args: Run) -> Outcome {
    let mut signals = Signals::listen().map_err(|err| Failure::io("listen for signals", &err))?;
    let client = tokio::select! {
        client = context.client() => client?,
        signal = signals.next() => return Err(Failure::Interrupted(signal)),
    };
    let mut progress = context.progress(args.wish.what());
    let acquire = args.wish.request(client).watched(|update| progress.step(&standing(update)));
    let desktop = tokio::select! {
        desktop = acquire => desktop?,
        signal = signals.next() => return Err(Failure::Interrupted(signal)),
    };
    drop(progress);
    context.note(format_args!("got {} with {}", desktop.lease().name, desktop.lease().vm));
    let outcome = with(context, &desktop, &args.command, &mut signals).await;
    let name = human::short(&desktop.lease().name);
    if desktop.is_lost() {
        return outcome;
    }
    // Also after a failure and a signal: the desktop goes back before anything else is said.
    let released = tokio::select! {
        released = desktop.release(args.fate.policy()) => released,
        signal = signals.next() => return Err(Failure::Interrupted(signal)),
    };
    match released {
        Ok(_) => context.note(format_args!("released {name}, its VM is {}", args.fate.word())),
        Err(error) => context.note(format_args!("cannot release {name}, it expires by itself: {error}")),
    }
    outcome
}

/// Runs the command with the desktop.
async fn with(context: &Context, desktop: &Desktop, command: &[String], signals: &mut Signals) -> Outcome {
    let [program, arguments @ ..] = command else { return Err(Failure::Usage("no command".to_owned())) };
    let mut child = Command::new(program)
        .args(arguments)
        .env("HVKUBE_LEASE", &desktop.lease().name)
        .env("HVKUBE_VM", &desktop.lease().vm)
        .kill_on_drop(true)
        .spawn()
        .map_err(|err| not_started(program, &err))?;
    tokio::select! {
        // A signal that ended the command at once must not be taken for a second one, which gives up the release.
        biased;
        signal = signals.next() => {
            context.note("waiting for the command to end; once more gives up on it");
            end(&mut child, signal, signals).await;
            Err(Failure::Interrupted(signal))
        }
        lost = desktop.lost() => {
            end(&mut child, Signal::Terminate, signals).await;
            Err(hvkube_sdk::Error::from(lost).into())
        }
        status = child.wait() => status.map(exit_code).map_err(|err| Failure::io("wait for the command", &err)),
    }
}

/// Lets the command end: an interrupt came to it from the terminal as well, everything else must be passed on. Gives up
/// at the next signal; the command is then killed.
async fn end(child: &mut Child, signal: Signal, signals: &mut Signals) {
    if signal == Signal::Terminate {
        terminate(child);
    }
    tokio::select! {
        // Its code is of no interest any more.
        _ = child.wait() => {}
        _ = signals.next() => {
            // It is gone already when this fails.
            let _ = child.kill().await;
        }
    }
}

#[cfg(unix)]
fn terminate(child: &mut Child) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        // It is gone already when this fails.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
}

#[cfg(not(unix))]
fn terminate(child: &mut Child) {
    // It is gone already when this fails.
    let _ = child.start_kill();
}

fn not_started(program: &str, err: &std::io::Error) -> Failure {
    let code = match err.kind() {
        std::io::ErrorKind::NotFound => 127,
        _ => 126,
    };
    Failure::Coded(Box::new(Failure::Local(format!("cannot run {program}: {err}"))), code)
}

fn exit_code(status: ExitStatus) -> ExitCode {
    match status.code() {
        Some(code) => ExitCode::from(u8::try_from(code & 0xff).unwrap_or(1)),
        None => ExitCode::from(signal_code(status)),
    }
}

#[cfg(unix)]
fn signal_code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt as _;
    let signal = status.signal().and_then(|signal| u8::try_from(signal).ok()).unwrap_or_default();
    signal.saturating_add(128)
}

#[cfg(not(unix))]
fn signal_code(_status: ExitStatus) -> u8 {
    1
}
