//! What VMs occupy on the host.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

/// Bytes that a folder's files take on disk, without the database: its log grows and shrinks by steps that have nothing
/// to do with one VM.
pub(crate) fn disk_bytes(folder: &Path) -> anyhow::Result<u64> {
    let mut sum = 0;
    // Files and folders may go while we look; they take nothing then.
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries.with_context(|| format!("list {}", folder.display()))?,
    };
    for entry in entries {
        let entry = entry?;
        let Ok(about) = entry.path().symlink_metadata() else { continue };
        if about.is_dir() {
            sum += disk_bytes(&entry.path())?;
        } else if !entry.file_name().to_string_lossy().starts_with("hvkube.db") {
            sum += about.blocks() * 512;
        }
    }
    Ok(sum)
}

/// Bytes of memory that a process alone occupies and the kernel cannot simply drop: pages of files that it only reads
/// are the file's, and shared by all clones.
pub(crate) fn private_bytes(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    anonymous(&text).with_context(|| format!("find the anonymous memory in {path}"))
}

/// Processor time that a process has used.
pub(crate) fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let ticks = ticks(&text).with_context(|| format!("find the times in {path}"))?;
    // Linux tells these times in hundredths of a second on every architecture that this runs on.
    Ok(Duration::from_millis(ticks * 10))
}

/// User and system time; they are the 14th and 15th field, and the second may hold anything in its parentheses.
fn ticks(stat: &str) -> Option<u64> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |n: usize| fields.get(n)?.parse::<u64>().ok();
    Some(field(11)? + field(12)?)
}

fn anonymous(smaps: &str) -> Option<u64> {
    let line = smaps.lines().find_map(|line| line.strip_prefix("Anonymous:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_read_whatever_the_programs_name() {
        assert_eq!(ticks("7 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 30 12 0 0"), Some(42));
        assert_eq!(ticks("7 (a"), None);
        assert!(cpu_time(std::process::id()).is_ok());
    }

    #[test]
    fn memory_is_read_as_the_kernel_writes_it() {
        assert_eq!(anonymous("Rss:  9 kB\nAnonymous:         40960 kB\nLazyFree: 0 kB"), Some(40_960 * 1024));
        assert_eq!(anonymous("Rss: 9 kB"), None);
        assert!(private_bytes(std::process::id()).expect("our own memory") > 4096);
    }

    #[test]
    fn holes_take_no_disk_and_the_database_does_not_count() {
        let folder = tempfile::tempdir().expect("temporary directory");
        let sparse = fs::File::create(folder.path().join("sparse")).expect("file");
        sparse.set_len(1 << 30).expect("size");
        fs::create_dir(folder.path().join("vms")).expect("directory");
        fs::write(folder.path().join("vms/full"), vec![1; 8192]).expect("file");
        fs::write(folder.path().join("hvkube.db-wal"), vec![1; 1 << 20]).expect("file");
        let bytes = disk_bytes(folder.path()).expect("sum");
        assert!((8192..1 << 18).contains(&bytes), "{bytes}");
    }
}
