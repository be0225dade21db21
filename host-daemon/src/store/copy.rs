//! Copies of the store: taken while it is in use, and put back while it is not.
//!
//! Both write a file beside the place where it is to be, make it durable, and rename it, so that a crash leaves the old
//! file or the new one and never half of one.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use tempfile::NamedTempFile;

use super::since::{self, Present};
use super::{Store, StoreConfig};

/// Why a copy was not made or not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CopyError {
    /// There is a file of that name.
    #[error("{} exists", .0.display())]
    Exists(PathBuf),
    /// It is no database, or not one of ours.
    #[error("{} is no store of hvkubed: {why}", path.display())]
    NotAStore {
        /// Which file.
        path: PathBuf,
        /// What is missing.
        why: &'static str,
    },
    /// A daemon newer than this one wrote it.
    #[error("{} has schema {schema}, this daemon knows {known} and older", path.display())]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its schema.
        schema: i64,
        /// The newest schema that this daemon knows.
        known: i64,
    },
    /// SQLite finds it broken.
    #[error("{} is damaged: {why}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What it says first.
        why: String,
    },
    /// Somebody copied a database that was in use, without what was not in its file yet.
    #[error("{} lies beside it, so it is a copy of a database in use and incomplete", .0.display())]
    Live(PathBuf),
    /// A file operation failed.
    #[error("can't {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The database failed.
    #[error("can't {action}")]
    Database {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: rusqlite::Error,
    },
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CopyError {
    move |source| CopyError::Io { action, path: path.to_owned(), source }
}

fn database(action: &'static str) -> impl FnOnce(rusqlite::Error) -> CopyError {
    move |source| CopyError::Database { action, source }
}

/// The folder that a file is in.
fn folder(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn sync_folder(path: &Path) -> Result<(), CopyError> {
    let folder = folder(path);
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io("make durable", folder))
}

/// A file beside the place where it is to be; only the owner may read it.
fn beside(path: &Path) -> Result<NamedTempFile, CopyError> {
    let folder = folder(path);
    tempfile::Builder::new().prefix(".hvkube-").tempfile_in(folder).map_err(io("write a file in", folder))
}

/// Interrupts the copying when nobody waits for it any more.
struct Interrupt(rusqlite::InterruptHandle);

impl Drop for Interrupt {
    fn drop(&mut self) {
        self.0.interrupt();
    }
}

impl Store {
    /// Writes a consistent copy of the store while it is in use, and gives its size in bytes. The copy is one file of its
    /// own, readable by its owner only. Dropping the future gives it up and leaves nothing behind.
    ///
    /// # Errors
    /// [`CopyError::Exists`] unless `overwrite` is set; [`CopyError::Io`], [`CopyError::Database`].
    pub async fn backup(&self, to: &Path, overwrite: bool) -> Result<u64, CopyError> {
        let (from, to) = (self.config().path.clone(), to.to_owned());
        // A connection of its own: it holds one snapshot for as long as it copies, and nobody waits for it.
        let db = Connection::open_with_flags(&from, OpenFlags::SQLITE_OPEN_READ_WRITE)
            .map_err(database("open the store"))?;
        let interrupt = Interrupt(db.get_interrupt_handle());
        let copied = tokio::task::spawn_blocking(move || copy(&db, &to, overwrite)).await;
        drop(interrupt);
        copied.unwrap_or_else(|error| {
            Err(CopyError::Io { action: "copy", path: from, source: io::Error::other(error) })
        })
    }
}

/// Whether a file begins as SQLite's do; an empty one will do too.
fn is_database(path: &Path) -> bool {
    const MAGIC: &[u8; 16] = b"SQLite format 3\0";
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAGIC.len() as u64).read_to_end(&mut start));
    read.is_ok() && path.is_file() && (start.is_empty() || start == MAGIC)
}

fn copy(db: &Connection, to: &Path, overwrite: bool) -> Result<u64, CopyError> {
    if !overwrite && to.exists() {
        return Err(CopyError::Exists(to.to_owned()));
    }
    if to.exists() && !is_database(to) {
        // A slip of the finger must not cost a file of somebody else's.
        return Err(CopyError::NotAStore { path: to.to_owned(), why: "it is not replaced" });
    }
    let file = beside(to)?;
    let path = file.path().to_string_lossy().into_owned();
    db.execute("VACUUM INTO ?1", [path]).map_err(database("copy the store"))?;
    file.as_file().sync_all().map_err(io("make durable", file.path()))?;
    let size = file.as_file().metadata().map_err(io("look at", file.path()))?.len();
    let renamed = if overwrite { file.persist(to) } else { file.persist_noclobber(to) };
    match renamed {
        Ok(_) => {}
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(CopyError::Exists(to.to_owned()));
        }
        Err(error) => return Err(io("write", to)(error.error)),
    }
    sync_folder(to)?;
    Ok(size)
}

/// What became of a copy that was put back.
#[derive(Debug, Default)]
pub struct Restored {
    /// Where the store is that was there before.
    pub kept: Option<PathBuf>,
    /// Why that one can't say who had VMs since the copy was taken, where it can't.
    pub unread: Option<CopyError>,
    /// Leases of the copy that were ended, since their VMs may have had other holders meanwhile.
    pub ended: Vec<String>,
}

/// Puts a copy in the place of a store that nobody has open. What was there is kept beside it.
///
/// The copy is checked before anything is touched: that it is whole, that it is a store, and that this daemon knows its
/// schema; an older one is upgraded when the store is opened. Revisions given out before mean nothing afterwards, and
/// neither do leases on VMs that somebody else may have had since; see `since`.
///
/// # Errors
/// [`CopyError`]; the store is as it was then.
pub fn restore(from: &Path, config: &StoreConfig) -> Result<Restored, CopyError> {
    let log = with_ending(from, "-wal");
    if fs::metadata(&log).is_ok_and(|file| file.len() > 0) {
        return Err(CopyError::Live(log));
    }
    let to = &config.path;
    let file = beside(to)?;
    let mut source = File::open(from).map_err(io("read", from))?;
    io::copy(&mut source, &mut file.as_file()).map_err(io("copy", from))?;
    let mut restored = Restored::default();
    let present = match to.exists().then(|| Present::read(to)) {
        None => Present::default(),
        Some(Ok(present)) => present,
        Some(Err(error)) => {
            restored.unread = Some(database("read the store that is replaced")(error));
            Present::default()
        }
    };
    restored.ended = prepare(file.path(), from, &present)?;
    file.as_file().sync_all().map_err(io("make durable", file.path()))?;

    restored.kept =
        to.exists().then(|| with_ending(to, &format!(".replaced-{}", Timestamp::now().as_microsecond())));
    if let Some(kept) = &restored.kept {
        // The old database stays in its place until the rename: a start in between must not find none, or it would
        // take all VMs for strangers.
        fs::hard_link(to, kept).map_err(io("keep the old store as", kept))?;
        for ending in ["-wal", "-shm"] {
            // Left there, its last commits would be played into the new database.
            let (old, new) = (with_ending(to, ending), with_ending(kept, ending));
            match fs::rename(&old, &new) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(io("move away", &old)(error));
                }
                _ => {}
            }
        }
    }
    file.persist(to).map_err(|error| io("write", to)(error.error))?;
    sync_folder(to)?;
    Ok(restored)
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Checks a copy of `from` and gives it a new history. Gives the leases that this ended.
fn prepare(path: &Path, from: &Path, present: &Present) -> Result<Vec<String>, CopyError> {
    let not_ours = |why| CopyError::NotAStore { path: from.to_owned(), why };
    let read = |error: rusqlite::Error| match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => not_ours("it is no SQLite database"),
        Some(ErrorCode::DatabaseCorrupt) => {
            CopyError::Damaged { path: from.to_owned(), why: error.to_string() }
        }
        _ => CopyError::Database { action: "read the copy", source: error },
    };
    let db = Connection::open(path).map_err(read)?;
    // One file, without a log beside it that a rename would leave behind.
    db.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(())).map_err(read)?;
    let found: String = db.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(read)?;
    if found != "ok" {
        return Err(CopyError::Damaged { path: from.to_owned(), why: found });
    }
    let exists = |table: &str| {
        let sql = "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?)";
        db.query_row(sql, [table], |row| row.get::<_, bool>(0))
    };
    if !exists("_sqlx_migrations").map_err(read)? {
        return Err(not_ours("it has no schema of ours"));
    }
    known_schema(&db, from, read)?;
    let loose: Option<String> = db
        .query_row("PRAGMA foreign_key_check", [], |row| row.get(0))
        .map(Some)
        .or_else(|error| if error == rusqlite::Error::QueryReturnedNoRows { Ok(None) } else { Err(error) })
        .map_err(read)?;
    if let Some(table) = loose {
        let why = format!("a row of {table} refers to none");
        return Err(CopyError::Damaged { path: from.to_owned(), why });
    }
    // One commit: each would wait for the disk.
    db.execute_batch("BEGIN").map_err(read)?;
    let ended = since::settle(&db, present).map_err(read)?;
    if exists("facts").map_err(read)? {
        let sql = "UPDATE facts SET value = lower(hex(randomblob(4))) WHERE name = 'incarnation'";
        db.execute(sql, []).map_err(read)?;
    }
    db.execute_batch("COMMIT").map_err(read)?;
    db.close().map_err(|(_, error)| read(error))?;
    Ok(ended)
}

/// Whether this daemon has every migration that made the database, and made it with the same.
fn known_schema(
    db: &Connection,
    from: &Path,
    read: impl Fn(rusqlite::Error) -> CopyError,
) -> Result<(), CopyError> {
    let sql = "SELECT version, checksum, success FROM _sqlx_migrations ORDER BY version";
    let mut statement = db.prepare(sql).map_err(&read)?;
    let rows = statement
        .query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?, row.get::<_, bool>(2)?)))
        .map_err(&read)?;
    let ours = &super::sqlite::MIGRATIONS;
    let known = ours.iter().map(|migration| migration.version).max().unwrap_or_default();
    let mut any = false;
    for row in rows {
        let (version, checksum, whole) = row.map_err(&read)?;
        any = true;
        if version > known {
            return Err(CopyError::Newer { path: from.to_owned(), schema: version, known });
        }
        let same = ours.iter().any(|one| one.version == version && *one.checksum == *checksum);
        if !same || !whole {
            let why = "its schema is not one that hvkubed makes";
            return Err(CopyError::NotAStore { path: from.to_owned(), why });
        }
    }
    if any {
        return Ok(());
    }
    Err(CopyError::NotAStore { path: from.to_owned(), why: "it is empty" })
}
