//! Running other programs: their output becomes the step's notes, its end becomes part of the error, and an interrupt
//! reaches them too.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::interrupt;
use crate::progress::Step;

/// How many of a failed program's last lines the error shows.
const TAIL_LINES: usize = 20;
const POLL: Duration = Duration::from_millis(100);

/// Runs `command` to its end, showing its output as notes of `step`.
///
/// # Errors
/// When it cannot start, fails (with the end of its output), or somebody interrupts.
pub(crate) fn run(command: &mut Command, step: &Step) -> anyhow::Result<()> {
    let name = program(command);
    let (reader, writer) = std::io::pipe().context("make a pipe")?;
    // In a group of its own, so that one signal reaches all its children, and exactly once: a program that is cleaning up
    // must not be told again.
    command.process_group(0);
    command.stdin(Stdio::null()).stdout(writer.try_clone().context("clone a pipe")?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("start {name}"))?;
    // The command still owns the pipe's write end; without this the reader never sees the end.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    // 64 lines: enough not to stall the program while a note is drawn, and no more memory than that.
    let (lines, incoming) = sync_channel(64);
    thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n') {
            let Ok(line) = line else { break };
            if lines.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                break;
            }
        }
    });

    let mut tail = VecDeque::with_capacity(TAIL_LINES);
    let mut told = false;
    let status = loop {
        match incoming.recv_timeout(POLL) {
            Ok(line) if line.is_empty() => {}
            Ok(line) => {
                step.note(&line);
                if tail.len() == TAIL_LINES {
                    tail.pop_front();
                }
                tail.push_back(line);
            }
            Err(RecvTimeoutError::Disconnected) => {
                break child.wait().with_context(|| format!("wait for {name}"))?;
            }
            Err(RecvTimeoutError::Timeout) => {
                // A daemon it left behind may hold the pipe open: the program's own end counts.
                if let Some(status) = child.try_wait().with_context(|| format!("wait for {name}"))? {
                    break status;
                }
            }
        }
        // Told once, and then waited for as long as it takes: a program that is killed while it cleans up may leave mounts
        // behind. Who cannot wait presses Ctrl-C again.
        if interrupt::requested() && !told {
            told = true;
            terminate_all(&child);
        }
    };
    interrupt::check()?;
    if !status.success() {
        bail!("{}:\n{}", failure(&name, status), Vec::from(tail).join("\n"));
    }
    Ok(())
}

/// Runs a program that answers at once and returns its stdout; its stderr becomes part of the error.
///
/// # Errors
/// When it cannot start, fails, or answers with something other than UTF-8.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let name = program(command);
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("start {name}"))?;
    if !out.status.success() {
        bail!("{}: {}", failure(&name, out.status), String::from_utf8_lossy(&out.stderr).trim());
    }
    String::from_utf8(out.stdout).with_context(|| format!("read what {name} printed"))
}

/// Whether a program by this name is on the path.
pub(crate) fn exists(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        // A user's path often lacks the system folders where mke2fs lives.
        std::env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .any(|folder| folder.join(program).is_file())
    })
}

fn program(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn failure(name: &str, status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("{name} failed with exit code {code}"),
        None => format!("{name} was ended by a signal"),
    }
}

/// Asks a child and everything it started to end.
fn terminate_all(child: &Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // It may have ended, or run as another user through sudo; then there is nothing more to do.
        let _ = kill_process_group(group, Signal::TERM);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_shows_the_end_of_the_output() {
        let step = Step::start("test");
        let mut command = Command::new("sh");
        command.args(["-c", "for i in $(seq 1 40); do echo line $i; done; echo wrong >&2; exit 3"]);
        let error = run(&mut command, &step).unwrap_err().to_string();
        step.done();
        assert!(error.starts_with("sh failed with exit code 3"), "{error}");
        assert!(error.ends_with("wrong"), "{error}");
        assert!(error.contains("line 40") && !error.contains("line 5\n"), "{error}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = output(&mut Command::new("hvkube-no-such-program")).unwrap_err().to_string();
        assert_eq!(error, "start hvkube-no-such-program");
        assert!(!exists("hvkube-no-such-program"));
        assert!(exists("sh"));
    }
}
