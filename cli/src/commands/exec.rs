//! `hvkube vm exec`: a program in the guest, as if it were here.

use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use clap::Args;
use hvkube_sdk::Error;
use hvkube_sdk::desktop::ExecEvent;
use hvkube_sdk::v1::ExecExit;

use crate::context::Context;
use crate::output::human;
use crate::report::{Failure, Outcome};
use crate::units;

/// Most the API takes for standard input.
const MAX_STDIN: u64 = 1 << 20;

const CODES: &str = "\
Ends with the program's own exit code, and otherwise with:
  124     the program was killed because --timeout was over
  125     hvkube or the daemon failed
  126     the program may not be run
  127     there is no such program
  128+N   signal N ended the program
  130     interrupted; the program was killed";

#[derive(Debug, Args)]
#[command(after_help = CODES)]
pub(crate) struct Exec {
    /// VM (id or name) or leases/ID
    name: String,
    /// Set a variable
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = units::variable)]
    env: Vec<(String, String)>,
    /// Directory to start in [default: the user's home]
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    /// Pass standard input on, 1 MiB at most; it is read to its end first
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Run as root (LocalSystem) instead of the desktop user
    #[arg(long)]
    as_root: bool,
    /// Program and arguments; no shell is involved
    #[arg(last = true, required = true, value_name = "ARGV")]
    argv: Vec<String>,
}

pub(crate) async fn run(context: &Context, args: Exec) -> Outcome {
    match stream(context, args).await {
        Ok(exit) => {
            if exit.timed_out {
                let limit = context.timeout().map(human::duration).unwrap_or_default();
                context.note(format_args!("killed after {limit} (--timeout)"));
            }
            Ok(ExitCode::from(code_of(exit)))
        }
        // Somebody closed our output, as `head` does: the program is killed with the call, like any in a pipe.
        Err(Failure::Closed) => Err(Failure::Closed),
        Err(failure) => {
            let code = match &failure {
                Failure::Call(error) => match error.reason() {
                    Some("PROGRAM_NOT_FOUND") => 127,
                    Some("GUEST_PERMISSION_DENIED") => 126,
                    _ => 125,
                },
                _ => 125,
            };
            Err(Failure::Coded(Box::new(failure), code))
        }
    }
}

async fn stream(context: &Context, args: Exec) -> Result<ExecExit, Failure> {
    let mut exec = context.client().await?.target(&args.name).exec(args.argv).as_root(args.as_root);
    for (name, value) in args.env {
        exec = exec.env(name, value);
    }
    if let Some(dir) = args.cwd {
        exec = exec.cwd(dir);
    }
    if let Some(limit) = context.timeout() {
        exec = exec.timeout(limit);
    }
    if args.stdin {
        // On a thread of its own, so that Ctrl-C still works meanwhile.
        let data = tokio::task::spawn_blocking(read_stdin)
            .await
            .map_err(|err| Failure::Local(err.to_string()))??;
        exec = exec.stdin(data);
    }
    let mut stream = exec.stream().await?;
    let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
    while let Some(event) = stream.next().await? {
        match event {
            ExecEvent::Stdout(data) => out.write_all(&data).and_then(|()| out.flush())?,
            ExecEvent::Stderr(data) => err.write_all(&data)?,
            ExecEvent::Exit(exit) => return Ok(exit),
            _ => {}
        }
    }
    Err(Error::Protocol("the program's output ended without its exit").into())
}

fn read_stdin() -> Result<Vec<u8>, Failure> {
    let mut data = Vec::new();
    let read = std::io::stdin().lock().take(MAX_STDIN + 1).read_to_end(&mut data);
    read.map_err(|err| Failure::io("read standard input", &err))?;
    if data.len() as u64 > MAX_STDIN {
        return Err(Failure::Usage(
            "standard input is over 1 MiB; copy it into the guest with `hvkube vm cp`".to_owned(),
        ));
    }
    Ok(data)
}

/// The exit code that this program can have: 8 bits, and never 0 for a failure.
fn code_of(exit: ExecExit) -> u8 {
    if exit.timed_out {
        return 124;
    }
    if exit.signal != 0 {
        return u8::try_from(exit.signal).ok().and_then(|signal| signal.checked_add(128)).unwrap_or(255);
    }
    match exit.code.to_le_bytes()[0] {
        0 if exit.code != 0 => 1,
        code => code,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_fit_and_failures_stay_failures() {
        let exit = |code, signal, timed_out| code_of(ExecExit { code, signal, timed_out });
        assert_eq!((exit(0, 0, false), exit(3, 0, false), exit(255, 0, false)), (0, 3, 255));
        assert_eq!(exit(0x100, 0, false), 1, "a code whose low byte is 0 is no success");
        assert_eq!(exit(-1, 9, false), 137);
        assert_eq!(exit(-1, 9, true), 124);
    }
}
