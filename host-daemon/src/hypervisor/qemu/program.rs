//! The programs the backend runs, and what versions of them are.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use crate::hypervisor::{HvError, HvResult};

/// Oldest QEMU whose `mapped-ram` and migration to files are used here.
const OLDEST: (u32, u32) = (9, 0);
/// A program that says something about itself or a file needs milliseconds; a cold disk may need seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is known of the QEMU in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Version {
    /// As it prints it, `10.0.2`.
    pub(crate) text: String,
    /// Its newest versioned machine of the kind used here, `pc-q35-10.0`.
    pub(crate) machine: String,
}

/// Runs a program to its end and returns what it printed. It is killed when the wait is given up.
pub(crate) async fn output<S: AsRef<OsStr>>(program: &Path, args: &[S]) -> HvResult<String> {
    let child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| HvError::Unavailable(format!("can't run {}: {error}", program.display())))?;
    let output = timeout(PATIENCE, child.wait_with_output())
        .await
        .map_err(|_| HvError::Timeout("a qemu tool"))?
        .map_err(|source| HvError::Io { context: format!("wait for {}", program.display()), source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(HvError::Process(format!("{} {}: {}", program.display(), output.status, words.trim())))
}

/// Asks QEMU what it is, and refuses one that is too old or lacks `qemu-img`.
pub(crate) async fn version(binary: &Path, img: &Path) -> HvResult<Version> {
    let text = parse_version(&output(binary, &["--version"]).await?).ok_or_else(|| {
        HvError::Unavailable(format!("{} --version does not name a version", binary.display()))
    })?;
    let major_minor = major_minor(&text);
    if major_minor < Some(OLDEST) {
        return Err(HvError::Unavailable(format!(
            "{} is QEMU {text}; {}.{} or newer is needed to save memory to a mapped file",
            binary.display(),
            OLDEST.0,
            OLDEST.1
        )));
    }
    output(img, &["--version"]).await?;
    let machine = newest_machine(&output(binary, &["-machine", "help"]).await?)
        .ok_or_else(|| HvError::Unavailable(format!("{} has no pc-q35 machine", binary.display())))?;
    Ok(Version { text, machine })
}

fn parse_version(words: &str) -> Option<String> {
    let rest = words.split("version ").nth(1)?;
    let version: String = rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    major_minor(&version).map(|_| version)
}

fn major_minor(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn newest_machine(help: &str) -> Option<String> {
    help.lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter_map(|name| Some((major_minor(name.strip_prefix("pc-q35-")?)?, name)))
        .max()
        .map(|(_, name)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_machines_are_read_from_what_qemu_prints() {
        let debian = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright (c)";
        assert_eq!(parse_version(debian).as_deref(), Some("10.0.2"));
        assert_eq!(parse_version("something else"), None);
        assert!(major_minor("8.2.1") < Some(OLDEST));
        assert!(major_minor("10.0.2") >= Some(OLDEST));
        let help = "Supported machines are:\nq35   Standard PC (alias of pc-q35-10.0)\npc-q35-9.2 Standard PC\n\
                    pc-q35-10.0 Standard PC\npc-q35-2.4 old\npc-i440fx-10.0 other\n";
        assert_eq!(newest_machine(help).as_deref(), Some("pc-q35-10.0"));
        assert_eq!(newest_machine("none"), None);
    }
}
