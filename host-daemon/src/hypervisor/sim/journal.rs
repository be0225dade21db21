//! The world's truth on disk: a file of lines, each a list of changes in JSON, read again at the next start.
//!
//! A line is written by one call before the change it tells is made, into the page cache: it is there when the daemon is
//! killed, not when the host loses power. A line that was cut off by that was never answered to anybody, so it is dropped.
//! When most of the file tells of what is no more, a new file with what there is replaces it by a rename.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::records::Change;
use crate::hypervisor::{HvError, HvResult};

/// A file may grow by this much, and by twice of what it began with, before it is written anew.
const SLACK: u64 = 4 << 20;

#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    length: u64,
    /// Length from which on it is written anew.
    limit: u64,
    /// It could not be put right after a failed write.
    broken: bool,
    /// Held while the directory is ours.
    _lock: File,
}

fn failed(context: &str, path: &Path) -> impl FnOnce(io::Error) -> HvError {
    let context = format!("{context} {}", path.display());
    move |source| HvError::Io { context, source }
}

fn private(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    options.read(true).write(true).create(true).mode(0o600).open(path)
}

impl Journal {
    /// Takes the directory and reads what is in it, oldest change first.
    pub(super) fn open(dir: &Path) -> HvResult<(Self, Vec<Change>)> {
        std::fs::create_dir_all(dir).map_err(failed("make", dir))?;
        let path = dir.join("lock");
        let lock = private(OpenOptions::new().truncate(false), &path).map_err(failed("open", &path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(HvError::Unavailable(format!("another daemon uses {}", dir.display())));
            }
            Err(error) => return Err(failed("lock", &path)(error.into())),
        }
        let path = dir.join("journal");
        let mut file = private(OpenOptions::new().truncate(false), &path).map_err(failed("open", &path))?;
        let text = std::fs::read(&path).map_err(failed("read", &path))?;
        let (changes, length) = read(&text, &path)?;
        file.set_len(length)
            .and_then(|()| file.seek(io::SeekFrom::Start(length)))
            .map_err(failed("cut", &path))?;
        let limit = length.saturating_mul(3) + SLACK;
        Ok((Self { path, file, length, limit, broken: false, _lock: lock }, changes))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes one line. What has failed has left no trace.
    pub(super) fn append(&mut self, changes: &[Change]) -> HvResult<()> {
        let path = self.path.clone();
        if self.broken {
            return Err(failed("write", &path)(io::Error::other("an earlier write could not be undone")));
        }
        let mut line = serde_json::to_vec(changes).map_err(|error| failed("write", &path)(error.into()))?;
        line.push(b'\n');
        if let Err(error) = self.file.write_all(&line) {
            let undone = self.file.set_len(self.length);
            self.broken = undone.and_then(|()| self.file.seek(io::SeekFrom::Start(self.length))).is_err();
            return Err(failed("write", &path)(error));
        }
        self.length += line.len() as u64;
        Ok(())
    }

    /// Whether it is time for [`Journal::rewrite`].
    pub(super) fn is_long(&self) -> bool {
        self.length > self.limit
    }

    /// Replaces all lines by these changes.
    pub(super) fn rewrite(&mut self, changes: impl Iterator<Item = Change>) -> HvResult<()> {
        let path = self.path.with_extension("new");
        let written = || -> io::Result<(File, u64)> {
            let mut file = io::BufWriter::new(private(OpenOptions::new().truncate(true), &path)?);
            for change in changes {
                serde_json::to_writer(&mut file, &[change])?;
                file.write_all(b"\n")?;
            }
            let mut file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
            let length = file.stream_position()?;
            std::fs::rename(&path, &self.path)?;
            Ok((file, length))
        };
        (self.file, self.length) = written().map_err(failed("write", &path))?;
        self.limit = self.length.saturating_mul(3) + SLACK;
        Ok(())
    }
}

/// The changes of all whole lines, and where those end.
fn read(text: &[u8], path: &Path) -> HvResult<(Vec<Change>, u64)> {
    let mut changes = Vec::new();
    let mut whole = 0;
    let mut lines = text.split_inclusive(|byte| *byte == b'\n').enumerate().peekable();
    while let Some((number, line)) = lines.next() {
        let last = lines.peek().is_none();
        let parsed = serde_json::from_slice::<Vec<Change>>(line);
        if last && (parsed.is_err() || !line.ends_with(b"\n")) {
            tracing::warn!(path = %path.display(), "the last line was cut off, its change was never made");
            break;
        }
        let more = parsed.map_err(|error| {
            HvError::Unavailable(format!(
                "line {} of {} is damaged ({error}); move the file away to begin with an empty world",
                number + 1,
                path.display()
            ))
        })?;
        changes.extend(more);
        whole += line.len() as u64;
    }
    Ok((changes, whole))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::VmId;

    fn gone(id: &str) -> Change {
        Change::NoVm(VmId::new(id).expect("id"))
    }

    fn ids(changes: &[Change]) -> Vec<String> {
        let id = |change: &Change| match change {
            Change::NoVm(id) => id.to_string(),
            other => panic!("{other:?}"),
        };
        changes.iter().map(id).collect()
    }

    #[test]
    fn a_line_counts_when_all_of_it_is_there() {
        let dir = tempfile::tempdir().expect("dir");
        let (mut journal, none) = Journal::open(dir.path()).expect("open");
        assert!(none.is_empty());
        journal.append(&[gone("vm-1"), gone("vm-2")]).expect("written");
        journal.append(&[gone("vm-3")]).expect("written");
        assert!(matches!(Journal::open(dir.path()), Err(HvError::Unavailable(_))), "one at a time");
        drop(journal);
        let path = dir.path().join("journal");
        let text = std::fs::read(&path).expect("read");
        let first = text.iter().position(|byte| *byte == b'\n').expect("a line") + 1;
        for cut in 0..=text.len() {
            std::fs::write(&path, &text[..cut]).expect("written");
            let (mut journal, changes) = Journal::open(dir.path()).expect("open");
            let expected = if cut == text.len() {
                3
            } else if cut >= first {
                2
            } else {
                0
            };
            assert_eq!(changes.len(), expected, "{cut}");
            journal.append(&[gone("vm-4")]).expect("written");
            drop(journal);
            let (_, changes) = Journal::open(dir.path()).expect("open again");
            assert_eq!(changes.len(), expected + 1, "{cut}");
        }
        let mut torn = text.clone();
        torn[3] = 0;
        std::fs::write(&path, &torn).expect("written");
        let error = Journal::open(dir.path()).expect_err("damaged").to_string();
        assert!(error.starts_with("line 1 of "), "{error}");
    }

    #[test]
    fn a_rewritten_file_says_the_same_in_fewer_words() {
        let dir = tempfile::tempdir().expect("dir");
        let (mut journal, _) = Journal::open(dir.path()).expect("open");
        let long = "x".repeat(60);
        while !journal.is_long() {
            journal.append(&vec![gone(&long); 1000]).expect("written");
        }
        journal.rewrite([gone("vm-1")].into_iter()).expect("rewritten");
        assert!(!journal.is_long());
        journal.append(&[gone("vm-2")]).expect("written");
        drop(journal);
        let (_, changes) = Journal::open(dir.path()).expect("open");
        assert_eq!(ids(&changes), ["vm-1", "vm-2"]);
    }
}
