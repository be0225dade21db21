//! Records on disk: each appears whole or not at all.

use std::fs;
use std::io;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::{desktop, io_error};
use crate::hypervisor::{HvError, HvResult};

/// Suffix of what is still being made; no id has a dot.
const PART: &str = ".part";

/// The backend's own id, made with its directory.
pub(super) fn instance(dir: &Path) -> HvResult<String> {
    for sub in ["templates", "vms"] {
        fs::create_dir_all(dir.join(sub))
            .map_err(io_error(format!("cannot make {}", dir.join(sub).display())))?;
    }
    let path = dir.join("instance");
    if let Some(known) = read::<Uuid>(&path)? {
        return Ok(known.to_string());
    }
    let new = Uuid::new_v4();
    write(&path, &new)?;
    Ok(new.to_string())
}

/// Writes a record, by way of another file.
pub(super) fn write<T: Serialize>(path: &Path, record: &T) -> HvResult<()> {
    let text = serde_json::to_vec_pretty(record).map_err(|error| HvError::Process(error.to_string()))?;
    let part = path.with_extension("part");
    fs::write(&part, text)
        .and_then(|()| fs::File::open(&part)?.sync_all())
        .and_then(|()| fs::rename(&part, path))
        .map_err(io_error(format!("cannot write {}", path.display())))
}

/// Reads a record; nothing when there is none or it is no record.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> HvResult<Option<T>> {
    match fs::read(path) {
        Ok(text) => Ok(serde_json::from_slice(&text)
            .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "not a record"))
            .ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(HvError::Io { context: format!("cannot read {}", path.display()), source }),
    }
}

/// Fills a directory beside its place and then moves it there.
pub(super) fn whole_directory<T>(dir: &Path, fill: impl FnOnce(&Path) -> HvResult<T>) -> HvResult<T> {
    let part = dir.with_extension(&PART[1..]);
    let made = desktop::remove(&part)
        .and_then(|()| fs::create_dir(&part))
        .map_err(io_error(format!("cannot make {}", part.display())))
        .and_then(|()| fill(&part))
        .and_then(|out| {
            fs::rename(&part, dir).map_err(io_error(format!("cannot make {}", dir.display())))?;
            Ok(out)
        });
    if made.is_err()
        && let Err(error) = desktop::remove(&part)
    {
        tracing::warn!(%error, "cannot remove what is half made");
    }
    made
}

/// Names of what is there; what was never finished is removed.
pub(super) fn ids(dir: &Path) -> HvResult<Vec<String>> {
    let failed = || io_error(format!("cannot read {}", dir.display()));
    let mut out = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.ends_with(PART) {
            desktop::remove(&entry.path()).map_err(io_error("cannot remove what is half made"))?;
        } else {
            out.push(name);
        }
    }
    out.sort();
    Ok(out)
}
