//! `hvkube secret`.

use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use hvkube_sdk::qualify;
use hvkube_sdk::v1::Secret;

use crate::args::{ListArgs, OutputArgs};
use crate::context::Context;
use crate::output;
use crate::report::{Failure, Outcome};
use crate::watch;

/// Longest value that the API takes.
const MAX_VALUE: u64 = 4096;

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Keep a value, read from a file or standard input, for `vm type --secret`
    Create {
        /// Id [default: made by the daemon]
        #[arg(default_value = "", hide_default_value = true)]
        name: String,
        /// Read the value from here instead of standard input; one line end at its end is left out
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// May be typed into desktops of this pool only; may be given several times
        #[arg(long = "pool", value_name = "POOL")]
        pools: Vec<String>,
        /// May be typed for the holder of this token only; may be given several times
        #[arg(long = "caller", value_name = "TOKEN_NAME")]
        callers: Vec<String>,
        /// For people; not secret
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        description: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// List secrets, without their values
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        list: ListArgs,
    },
    /// Show what is known of a secret; nothing shows its value
    #[command(visible_alias = "info")]
    Get {
        /// Id or name
        name: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Forget secrets
    #[command(visible_alias = "rm")]
    Delete {
        /// Ids or names
        #[arg(required = true)]
        names: Vec<String>,
    },
}

pub(crate) async fn run(context: &Context, action: Action) -> Outcome {
    match action {
        Action::Create { name, file, pools, callers, description, output } => {
            let value = read(file.as_deref())?;
            let secret = Secret {
                description,
                allowed_pools: pools.iter().map(|pool| qualify("pools", pool)).collect(),
                allowed_callers: callers,
                ..Secret::default()
            };
            let made = context.client().await?.create_secret(&name, secret, &value).await?;
            output::result(&made, context.format(output))?;
        }
        Action::List { list } => {
            let client = context.client().await?;
            return watch::list(context, list, || client.list_secrets()).await;
        }
        Action::Get { name, output } => {
            let secret = context.client().await?.get_secret(&name).await?;
            output::one(&secret, context.format(output))?;
        }
        Action::Delete { names } => {
            let client = context.client().await?;
            for name in names {
                client.delete_secret(&name).await?;
                context.note(format_args!("deleted secret {name}"));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The value. Never an argument: those are in everybody's list of processes and in the shell's history.
fn read(file: Option<&Path>) -> Result<String, Failure> {
    let mut value = String::new();
    let (what, read) = match file {
        Some(path) => {
            let what = path.display().to_string();
            let file = std::fs::File::open(path).map_err(|err| Failure::io(&format!("read {what}"), &err))?;
            (what, file.take(MAX_VALUE + 2).read_to_string(&mut value))
        }
        None if std::io::stdin().is_terminal() => {
            let how = "give the value with --file or on standard input, which a terminal would show";
            return Err(Failure::Usage(how.to_owned()));
        }
        None => {
            let what = "standard input".to_owned();
            (what, std::io::stdin().lock().take(MAX_VALUE + 2).read_to_string(&mut value))
        }
    };
    read.map_err(|err| Failure::io(&format!("read {what}"), &err))?;
    // Editors and `echo` end a line; a password rarely does.
    if value.ends_with('\n') {
        value.pop();
        if value.ends_with('\r') {
            value.pop();
        }
    }
    if value.len() as u64 > MAX_VALUE {
        return Err(Failure::Usage(format!("{what} holds more than {MAX_VALUE} bytes")));
    }
    Ok(value)
}
