//! The guest's disk: a few files in memory. Folders are whatever files' paths say.

use std::time::SystemTime;

use tonic::Status;

use super::{Disk, File};
use crate::process::check_path;

/// What all files may hold together, in bytes.
pub const MAX_DISK: usize = 1 << 20;
const HOME: &str = "/home/user";

/// An absolute path; what is relative counts from the home.
pub(super) fn resolve(path: &str) -> Result<String, Status> {
    check_path(path)?;
    let whole = if path.starts_with('/') { path.to_owned() } else { format!("{HOME}/{path}") };
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    Ok(format!("/{}", parts.join("/")))
}

fn is_folder(disk: &Disk, path: &str) -> bool {
    let inside = if path == "/" { "/".to_owned() } else { format!("{path}/") };
    path == "/"
        || path == HOME
        || disk.files.range(inside.clone()..).next().is_some_and(|(p, _)| p.starts_with(&inside))
}

pub(super) fn read<'a>(disk: &'a Disk, path: &str) -> Result<&'a File, Status> {
    match disk.files.get(path) {
        Some(file) => Ok(file),
        None if is_folder(disk, path) => {
            Err(Status::invalid_argument(format!("path: {path} is a directory")))
        }
        None => Err(Status::not_found(format!("{path} does not exist"))),
    }
}

/// Replaces a file, or adds to its end.
pub(super) fn write(
    disk: &mut Disk,
    path: &str,
    mode: u32,
    append: bool,
    data: Vec<u8>,
) -> Result<(), Status> {
    if is_folder(disk, path) {
        return Err(Status::invalid_argument(format!("path: {path} is a directory")));
    }
    let old = disk.files.get(path);
    let kept = if append { old.map_or(0, |file| file.data.len()) } else { 0 };
    let freed = old.map_or(0, |file| path.len() + file.data.len());
    if disk.bytes() - freed + path.len() + kept + data.len() > MAX_DISK {
        return Err(Status::resource_exhausted(format!(
            "{path}: a simulated guest's files hold {MAX_DISK} bytes in all"
        )));
    }
    let modified = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let modified = i64::try_from(modified.as_secs()).unwrap_or(i64::MAX);
    match disk.files.get_mut(path) {
        Some(file) if append => {
            file.data.extend(data);
            file.modified = modified;
        }
        _ => drop(disk.files.insert(path.to_owned(), File { mode, modified, data })),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_files_and_the_disks_end() {
        assert_eq!(resolve("a/../b").expect("legal"), "/home/user/b");
        assert_eq!(resolve("/../../etc/x").expect("legal"), "/etc/x");
        let mut disk = Disk::default();
        write(&mut disk, "/a/b", 0o600, false, b"one".to_vec()).expect("written");
        write(&mut disk, "/a/b", 0o600, true, b"two".to_vec()).expect("appended");
        assert_eq!(read(&disk, "/a/b").expect("there").data, b"onetwo");
        assert_eq!(read(&disk, "/a").expect_err("a folder").code(), tonic::Code::InvalidArgument);
        assert_eq!(read(&disk, "/c").expect_err("nothing").code(), tonic::Code::NotFound);
        let full = write(&mut disk, "/big", 0o600, false, vec![0; MAX_DISK]).expect_err("full");
        assert_eq!(full.code(), tonic::Code::ResourceExhausted);
        write(&mut disk, "/a/b", 0o600, false, vec![0; MAX_DISK - 4]).expect("what it replaces makes room");
    }
}
