//! Running other programs: their output becomes the step's notes, its end becomes part of the error, and an interrupt
//! reaches them too.

use std::collections::VecDeque;
use std::fmt;
use std::io::{BufRead as _, BufReader, PipeReader, Read as _};
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

/// A program that ran and failed.
#[derive(Debug)]
pub(crate) struct Failed {
    /// Its exit code; none when a signal ended it.
    pub(crate) code: Option<i32>,
    text: String,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failed {}

/// Runs `command` to its end, showing its output as notes of `step`.
///
/// # Errors
/// When it cannot start, fails ([`Failed`], with the end of its output), or somebody interrupts.
pub(crate) fn run(command: &mut Command, step: &Step) -> anyhow::Result<()> {
    watch(command, step, |line| step.note(line))
}

/// Like [`run`], and gives every line of the output to `see`.
///
/// # Errors
/// As [`run`].
pub(crate) fn watch(command: &mut Command, step: &Step, see: impl FnMut(&str)) -> anyhow::Result<()> {
    let name = program(command);
    let (reader, writer) = std::io::pipe().context("make a pipe")?;
    command.stdout(writer.try_clone().context("clone a pipe")?).stderr(writer);
    let child = spawn(command, &name)?;
    attend(child, reader, &name, step, see)
}

/// Runs `command` to its end, showing what it tells people as notes of `step`, and returns its stdout.
///
/// # Errors
/// As [`run`].
pub(crate) fn answer(command: &mut Command, step: &Step) -> anyhow::Result<Vec<u8>> {
    let name = program(command);
    let (reader, writer) = std::io::pipe().context("make a pipe")?;
    let (mut stdout, stdout_writer) = std::io::pipe().context("make a pipe")?;
    command.stdout(stdout_writer).stderr(writer);
    let child = spawn(command, &name)?;
    let collected = thread::spawn(move || {
        let mut bytes = Vec::new();
        stdout.read_to_end(&mut bytes).map(|_| bytes)
    });
    attend(child, reader, &name, step, |line| step.note(line))?;
    match collected.join() {
        Ok(bytes) => bytes.with_context(|| format!("read what {name} printed")),
        Err(_) => bail!("reading what {name} printed failed"),
    }
}

fn spawn(command: &mut Command, name: &str) -> anyhow::Result<Child> {
    // In a group of its own, so that one signal reaches all its children, and exactly once: a program that is cleaning up
    // must not be told again.
    command.process_group(0);
    let child = command.stdin(Stdio::null()).spawn().with_context(|| format!("start {name}"))?;
    // The command still owns the pipes' write ends; without this their readers never see the end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    Ok(child)
}

/// Gives a program's lines to `see` until it has ended; an interrupt ends it.
fn attend(
    mut child: Child,
    reader: PipeReader,
    name: &str,
    step: &Step,
    mut see: impl FnMut(&str),
) -> anyhow::Result<()> {
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
                see(&line);
                if tail.len() == TAIL_LINES {
                    tail.pop_front();
                }
                tail.push_back(line);
            }
            Err(RecvTimeoutError::Disconnected) => {
                break child.wait().with_context(|| format!("wait for {name}"))?;
            }
            Err(RecvTimeoutError::Timeout) => {
                step.tick();
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
        let text = format!("{}:\n{}", failure(name, status), Vec::from(tail).join("\n"));
        return Err(Failed { code: status.code(), text }.into());
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
        let error = run(&mut command, &step).unwrap_err();
        step.done();
        assert_eq!(error.downcast_ref::<Failed>().unwrap().code, Some(3));
        let error = error.to_string();
        assert!(error.starts_with("sh failed with exit code 3"), "{error}");
        assert!(error.ends_with("wrong"), "{error}");
        assert!(error.contains("line 40") && !error.contains("line 5\n"), "{error}");
    }

    #[test]
    fn an_answer_is_stdout_alone() {
        let step = Step::start("test");
        let mut command = Command::new("sh");
        command.args(["-c", "echo working >&2; seq 1 20000"]);
        let bytes = answer(&mut command, &step).unwrap();
        step.done();
        assert!(bytes.starts_with(b"1\n2\n") && bytes.ends_with(b"\n20000\n"));
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = output(&mut Command::new("hvkube-no-such-program")).unwrap_err().to_string();
        assert_eq!(error, "start hvkube-no-such-program");
        assert!(!exists("hvkube-no-such-program"));
        assert!(exists("sh"));
    }
}
