//! The commands, one module per noun; those of `vm` that drive a desktop have modules of their own.

pub(crate) mod agent;
pub(crate) mod checkpoint;
pub(crate) mod console;
pub(crate) mod cp;
pub(crate) mod desk;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod host;
pub(crate) mod input;
pub(crate) mod input_lines;
pub(crate) mod lease;
pub(crate) mod lease_run;
pub(crate) mod misc;
pub(crate) mod operation;
pub(crate) mod pool;
pub(crate) mod screen;
pub(crate) mod secret;
pub(crate) mod template;
pub(crate) mod vm;

use crate::args::Command;
use crate::context::Context;
use crate::report::Outcome;

/// Runs a command.
pub(crate) async fn run(context: &Context, command: Command) -> Outcome {
    match command {
        Command::Template(action) => template::run(context, action).await,
        Command::Pool(action) => pool::run(context, action).await,
        Command::Vm(action) => vm::run(context, *action).await,
        Command::Lease(action) => lease::run(context, action).await,
        Command::Events(action) => events::run(context, action).await,
        Command::Agent(action) => agent::run(context, action).await,
        Command::Secret(action) => secret::run(context, action).await,
        Command::Host(action) => host::run(context, action).await,
        Command::Operation(action) => operation::run(context, action).await,
        Command::Completions(args) => misc::completions(&args),
        Command::Version(args) => misc::version(context, args).await,
    }
}
