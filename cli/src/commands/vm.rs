//! `hvkube vm`: states and moves. The desktop's commands are in modules of their own.

use std::future::Future;
use std::process::ExitCode;

use clap::Subcommand;
use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use hvkube_sdk::v1::{StopMode, Vm, VmState, WatchVmsRequest};

use crate::args::{ListArgs, OutputArgs};
use crate::commands::{checkpoint, console, cp, desk, exec, input, input_lines, screen};
use crate::context::Context;
use crate::output;
use crate::report::{Failure, Outcome};
use crate::watch;

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// List VMs
    #[command(visible_alias = "ls")]
    List {
        /// Only those of this pool
        #[arg(short, long)]
        pool: Option<String>,
        /// Only those in this state; may be given several times
        #[arg(short, long = "state", value_name = "STATE", value_delimiter = ',', value_parser = states())]
        states: Vec<VmState>,
        #[command(flatten)]
        list: ListArgs,
    },
    /// Show a VM
    #[command(visible_alias = "get")]
    Info {
        /// Id or name
        name: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Boot a VM that is off
    Start(Move),
    /// Bring a saved or paused VM to running
    Resume(Move),
    /// Save a VM's memory to disk; resuming goes on where it was
    Save(Move),
    /// Stop a VM's CPUs; its memory stays
    Pause(Move),
    /// Shut a VM down, or switch it off; --timeout is how long the guest gets for it, 30 s by default
    Stop {
        #[command(flatten)]
        vm: Move,
        /// Switch off at once
        #[arg(long)]
        hard: bool,
    },
    /// Put a VM back to its clean checkpoint
    Reset(Move),
    /// Delete VMs with their disks and checkpoints
    #[command(visible_alias = "rm")]
    Delete {
        /// Ids or names
        #[arg(required = true)]
        names: Vec<String>,
        /// End leases on them too
        #[arg(long)]
        force: bool,
    },
    /// Make another VM that goes on from the same memory and disk
    Fork {
        /// Id or name of the original
        name: String,
        /// Id of the new one [default: made by the daemon]
        #[arg(default_value = "", hide_default_value = true)]
        new: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Memory and disk kept under names
    #[command(subcommand)]
    Checkpoint(checkpoint::Action),
    /// Take a picture of the screen
    Screenshot(screen::Screenshot),
    /// Open a viewer: screen, keyboard and mouse in a window, from boot on
    Console(console::Console),
    /// Wait until the screen settles, a region changes or a pixel has a colour
    Wait(screen::Wait),
    /// Type text
    Type(input::Type),
    /// Press keys, together like ctrl+shift+t or one after the other
    Key(input::Key),
    /// Click
    Click(input::Click),
    /// Move the pointer
    Move(input::Move),
    /// Drag with the mouse
    Drag(input::Drag),
    /// Turn the wheel
    Scroll(input::Scroll),
    /// Do lines of input as they come: click, move, drag, scroll, key, press, release, type, pause, release-all
    Input(input_lines::Lines),
    /// What was copied on the desktop
    #[command(subcommand)]
    Clipboard(desk::Action),
    /// List the windows on the desktop, the topmost first
    Windows(desk::Windows),
    /// Raise a window and give it the keyboard
    Focus(desk::Focus),
    /// Cover parts of the screen in every picture of it until the lease ends; without any, show what is covered
    Mask(desk::Mask),
    /// Run a program in the guest
    Exec(exec::Exec),
    /// Copy a file into or out of the guest
    Cp(cp::Cp),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Move {
    /// Id or name
    name: String,
    #[command(flatten)]
    output: OutputArgs,
}

impl Action {
    pub(crate) fn has_own_timeout(&self) -> bool {
        matches!(self, Self::Stop { .. } | Self::Exec(_) | Self::Wait(_) | Self::Console(_))
    }
}

fn states() -> impl clap::builder::TypedValueParser<Value = VmState> {
    const STATES: [&str; 12] = [
        "provisioning",
        "booting",
        "running",
        "saving",
        "saved",
        "resuming",
        "paused",
        "resetting",
        "stopping",
        "off",
        "deleting",
        "error",
    ];
    PossibleValuesParser::new(STATES).map(|name| {
        VmState::from_str_name(&format!("VM_STATE_{}", name.to_ascii_uppercase())).unwrap_or_default()
    })
}

pub(crate) async fn run(context: &Context, action: Action) -> Outcome {
    match action {
        Action::List { pool, states, list } => {
            let client = context.client().await?;
            if list.watch {
                let request = WatchVmsRequest {
                    pool: pool.unwrap_or_default(),
                    states: states.into_iter().map(i32::from).collect(),
                    ..WatchVmsRequest::default()
                };
                return watch::follow(context, list, client.watch_vms(request)).await;
            }
            return watch::list(context, list, || client.list_vms(pool.as_deref(), &states)).await;
        }
        Action::Info { name, output } => {
            let vm = context.client().await?.get_vm(&name).await?;
            output::one(&vm, context.format(output))?;
        }
        Action::Start(args) => moving(context, args, "starting", async |c, n| c.start_vm(n).await).await?,
        Action::Resume(args) => moving(context, args, "resuming", async |c, n| c.resume_vm(n).await).await?,
        Action::Save(args) => moving(context, args, "saving", async |c, n| c.save_vm(n).await).await?,
        Action::Pause(args) => moving(context, args, "pausing", async |c, n| c.pause_vm(n).await).await?,
        Action::Reset(args) => moving(context, args, "resetting", async |c, n| c.reset_vm(n).await).await?,
        Action::Stop { vm, hard } => {
            let mode = if hard { StopMode::Hard } else { StopMode::Graceful };
            let timeout = context.timeout();
            moving(context, vm, "stopping", async |c, n| c.stop_vm(n, mode, timeout).await).await?;
        }
        Action::Delete { names, force } => {
            let client = context.client().await?;
            for name in names {
                client.delete_vm(&name, force).await?;
                context.note(format_args!("deleted VM {name}"));
            }
        }
        Action::Fork { name, new, output } => {
            let client = context.client().await?;
            let work = client.fork_vm(&name, &new);
            let vm = shown(context, format!("forking {name}"), work).await?;
            output::result(&vm, context.format(output))?;
        }
        Action::Checkpoint(action) => return checkpoint::run(context, action).await,
        Action::Screenshot(args) => return screen::screenshot(context, args).await,
        Action::Console(args) => return console::run(context, args).await,
        Action::Wait(args) => return screen::wait(context, args).await,
        Action::Type(args) => return input::type_text(context, args).await,
        Action::Key(args) => return input::key(context, args).await,
        Action::Click(args) => return input::click(context, args).await,
        Action::Move(args) => return input::move_to(context, args).await,
        Action::Drag(args) => return input::drag(context, args).await,
        Action::Scroll(args) => return input::scroll(context, args).await,
        Action::Input(args) => return input_lines::run(context, args).await,
        Action::Clipboard(action) => return desk::clipboard(context, action).await,
        Action::Windows(args) => return desk::windows(context, args).await,
        Action::Focus(args) => return desk::focus(context, args).await,
        Action::Mask(args) => return desk::mask(context, args).await,
        Action::Exec(args) => return exec::run(context, args).await,
        Action::Cp(args) => return cp::run(context, args).await,
    }
    Ok(ExitCode::SUCCESS)
}

async fn moving(
    context: &Context,
    args: Move,
    doing: &str,
    work: impl AsyncFnOnce(&hvkube_sdk::Client, &str) -> hvkube_sdk::Result<Vm>,
) -> Result<(), Failure> {
    let client = context.client().await?;
    let vm = shown(context, format!("{doing} {}", args.name), work(client, &args.name)).await?;
    output::result(&vm, context.format(args.output))?;
    Ok(())
}

/// Shows that something is being done, for as long as it is.
pub(crate) async fn shown<T>(
    context: &Context,
    what: String,
    work: impl Future<Output = hvkube_sdk::Result<T>>,
) -> Result<T, Failure> {
    let progress = context.progress(what);
    let result = work.await;
    drop(progress);
    Ok(result?)
}
