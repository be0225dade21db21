//! The command line's frame: what every command takes, and the nouns.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::commands::{agent, events, host, lease, misc, operation, pool, secret, template, vm};
use crate::units;

const AFTER_HELP: &str = "\
Exit codes:
  0    done
  1    failed for another reason
  2    wrong usage, or a value that the daemon refuses
  3    not found
  4    daemon not reachable
  5    not allowed: token missing, wrong, or not the owner's
  6    not possible now: state, conflict, already exists
  7    exhausted, or the time is over
  130  interrupted (143: terminated)

`vm exec` ends with the program's own code, see its help.

Environment:
  HVKUBE_ENDPOINT   URL of the daemon
  HVKUBE_TOKEN      token
  HVKUBE_STATE_DIR  where the local daemon keeps its token and endpoint
  NO_COLOR          no colours";

/// Pools of clean desktops: acquire one, see it, drive it, give it back.
#[derive(Debug, Parser)]
#[command(name = "hvkube", version, after_long_help = AFTER_HELP, infer_long_args = false)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    /// Format of the output: table, wide, json, yaml or name; also accepted behind the command
    #[arg(
        id = "root_format",
        short = 'o',
        long = "output",
        value_name = "FORMAT",
        hide_possible_values = true
    )]
    pub(crate) format: Option<Format>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// URL of the daemon [default: HVKUBE_ENDPOINT, the local daemon's own record, http://127.0.0.1:7420]
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) endpoint: Option<String>,
    /// Token; other users of this machine can see it here, so prefer HVKUBE_TOKEN or --token-file
    #[arg(long, global = true, value_name = "TOKEN", conflicts_with = "token_file")]
    pub(crate) token: Option<String>,
    /// File that holds the token [default: admin.token in the local daemon's state directory]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Give up after this long, e.g. 30s, 5m
    #[arg(long, global = true, value_name = "DURATION", value_parser = units::duration)]
    pub(crate) timeout: Option<Duration>,
    /// No notes and no progress, only data and errors
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// When to use colours
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value_t = Color::Auto)]
    pub(crate) color: Color,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For people with wide terminals
    Wide,
    /// The API's JSON
    Json,
    /// The same as YAML
    Yaml,
    /// Resource names only, one a line
    Name,
}

/// For commands that print resources.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct OutputArgs {
    /// Format of the output
    #[arg(short = 'o', long = "output", value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
}

/// For commands that print lists.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    /// Go on and show changes, until interrupted: redrawn on a terminal, else a line for each changed row
    #[arg(short, long)]
    pub(crate) watch: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Golden images that VMs are made from
    #[command(subcommand)]
    Template(template::Action),
    /// Pools: so many VMs of one template, so many of them ready
    #[command(subcommand)]
    Pool(pool::Action),
    /// Single VMs: state, screen, keyboard, mouse, programs, files
    #[command(subcommand)]
    Vm(Box<vm::Action>),
    /// Leases: acquire a clean desktop, renew it, give it back
    #[command(subcommand)]
    Lease(lease::Action),
    /// Agents: tasks that run on a desktop of their own
    #[command(subcommand)]
    Agent(agent::Action),
    /// What happened, and what happens now
    #[command(subcommand)]
    Events(events::Action),
    /// Secrets that are typed by name and shown to nobody
    #[command(subcommand)]
    Secret(secret::Action),
    /// The machine that runs the VMs
    #[command(subcommand)]
    Host(host::Action),
    /// Long work in the background
    #[command(subcommand)]
    Operation(operation::Action),
    /// Print a completion script
    Completions(misc::Completions),
    /// Print the versions of this program and of the daemon
    Version(misc::Version),
}

impl Command {
    /// Whether it has something to put right before it ends, and so takes signals itself.
    pub(crate) fn handles_signals(&self) -> bool {
        matches!(self, Self::Lease(lease::Action::Run(_)))
    }

    /// Whether `--timeout` is part of what it asks of the daemon.
    pub(crate) fn has_own_timeout(&self) -> bool {
        matches!(self, Self::Vm(action) if action.has_own_timeout())
    }
}
