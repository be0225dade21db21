//! Processes that belong to a folder: its path is in their command line or environment.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long a process may take to end when it is asked to.
const GRACE: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(20);

/// Ends every process of a folder and returns what they were.
pub(super) fn end(folder: &Path) -> Vec<String> {
    let found = find(folder);
    if found.is_empty() {
        return Vec::new();
    }
    let asked = Instant::now();
    send(&found, Signal::TERM);
    loop {
        // Looked for anew each time: a number may be somebody else's by now, and a parent may have had children.
        let left = find(folder);
        if left.is_empty() {
            break;
        }
        if asked.elapsed() >= GRACE {
            send(&left, Signal::KILL);
        }
        if asked.elapsed() >= 2 * GRACE {
            break;
        }
        std::thread::sleep(POLL);
    }
    found.into_iter().map(|(pid, name)| format!("{name} ({pid})")).collect()
}

fn send(processes: &[(i32, String)], signal: Signal) {
    for (pid, _) in processes {
        if let Some(pid) = Pid::from_raw(*pid) {
            // It may have ended meanwhile.
            let _ = kill_process(pid, signal);
        }
    }
}

/// Number and name of every process of a folder but our own.
fn find(folder: &Path) -> Vec<(i32, String)> {
    let needle = folder.as_os_str().as_bytes();
    let mine = i32::try_from(std::process::id()).ok();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if Some(pid) == mine {
            continue;
        }
        // Zombies have neither; other users' environments are not for us to read.
        let names = |file: &str| fs::read(entry.path().join(file)).is_ok_and(|text| contains(&text, needle));
        if names("cmdline") || names("environ") {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            found.push((pid, name.trim().to_owned()));
        }
    }
    found
}

/// Whether the path is in there, and not only as the beginning of another name.
fn contains(text: &[u8], path: &[u8]) -> bool {
    text.windows(path.len()).enumerate().any(|(at, window)| {
        window == path && !text.get(at + path.len()).is_some_and(u8::is_ascii_alphanumeric)
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn processes_are_found_by_command_line_and_environment_and_end() {
        let folder = tempfile::tempdir().unwrap();
        let mut by_environment = Command::new("sleep")
            .arg("600")
            .env("HVKUBE_STATE_DIR", folder.path().join("state"))
            .spawn()
            .unwrap();
        // Deaf to a polite word.
        let script = format!("trap '' TERM; : {}/x; while :; do sleep 1; done", folder.path().display());
        let mut by_argument = Command::new("sh").args(["-c", &script]).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while find(folder.path()).len() < 2 {
            assert!(Instant::now() < deadline, "the processes do not show");
            std::thread::sleep(POLL);
        }

        let ended = end(folder.path());
        by_environment.wait().unwrap();
        by_argument.wait().unwrap();
        assert!(ended.iter().any(|text| text == &format!("sleep ({})", by_environment.id())), "{ended:?}");
        assert!(ended.iter().any(|text| text == &format!("sh ({})", by_argument.id())), "{ended:?}");
        assert_eq!(end(folder.path()), Vec::<String>::new());
    }

    #[test]
    fn a_longer_name_is_another_folder() {
        assert!(contains(b"x\0/run/ab/state\0", b"/run/ab"));
        assert!(contains(b"A=/run/ab", b"/run/ab"));
        assert!(!contains(b"/run/abc/state", b"/run/ab"));
    }
}
