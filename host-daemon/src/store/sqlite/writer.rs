//! The one writer: a thread with a connection of its own, which commits in groups.
//!
//! ```text
//!  write() ──► queue ──► [ BEGIN  { SAVEPOINT  work  RELEASE } x n  COMMIT ] ──► changes ──► answers
//! ```
//!
//! While one commit waits for the disk, the writes that come meanwhile gather and become the next one. Where there is
//! company it is waited for a moment longer; a write by itself never waits. Each has a savepoint, so one that fails takes
//! nothing along, and none is answered before the commit that holds it. A write that was queued is done even if its
//! caller has gone.
//!
//! It is a thread with rusqlite, and not one of sqlx's connections, because those take two task switches for every
//! statement: the same UPDATE took 21 us there and 5 us here on a quiet machine of two cores, 90 us and 5 us on a busy one.
//! `examples/store_bench.rs` measures commits.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, Params};
use tokio::sync::{mpsc, oneshot};

use super::row::micros;
use crate::model::event::Event;
use crate::model::ids::{AgentId, LeaseId, PoolId, TemplateId, VmId};
use crate::store::changes::{Changes, Commit, RowChange};
use crate::store::{StoreConfig, StoreError, StoreResult};

/// Writes that wait; more callers than this wait at the queue's end. Each is a few hundred bytes.
const QUEUE: usize = 1024;
/// Writes in one commit: more save no time, and the first of them would wait longer for its answer.
const GROUP: usize = 256;
/// How long the others of a group are waited for, once the last group had several: a commit costs the processor and the
/// disk about the same however much is in it.
const GATHER: Duration = Duration::from_micros(300);
/// Statements kept prepared: all there are.
const STATEMENTS: usize = 128;
/// Pages of 4 KiB in the log before a commit moves them into the database: often enough that the log stays in the page
/// cache, rarely enough that hot pages are moved once for many writes.
const LOG_PAGES: u32 = 4000;
/// The log's file is cut to this when it starts anew, after a reader had held it for long.
const LOG_BYTES: u32 = 64 << 20;
/// For other processes that hold the database: a backup tool, a curious person with a shell.
pub(super) const BUSY: Duration = Duration::from_secs(10);

type Failure = Arc<rusqlite::Error>;
/// Tells the caller, once it is known what became of the commit.
type Answer = Box<dyn FnOnce(Result<(), &Failure>) + Send>;
/// Does a write, or hears why it can't be done; says whether it is to stay.
type Work = Box<dyn FnOnce(Result<&mut Tx<'_>, &Failure>) -> (bool, Answer) + Send>;

enum Message {
    Write(Work),
    /// Moves the whole log into the database and cuts it.
    Checkpoint(oneshot::Sender<StoreResult<()>>),
    Close(oneshot::Sender<()>),
}

/// The way to the writer's thread.
#[derive(Debug)]
pub(super) struct Writer {
    queue: Option<mpsc::Sender<Message>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    /// Starts the thread on a database that has its schema.
    pub(super) fn open(config: &StoreConfig, changes: Arc<Changes>) -> StoreResult<Self> {
        let db = connect(&config.path, config.durable).map_err(failed("open the database for writing"))?;
        let (queue, messages) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || run(&db, messages, &changes))
            .map_err(|error| StoreError::Database { context: "start the writer", source: Box::new(error) })?;
        Ok(Self { queue: Some(queue), thread: Mutex::new(Some(thread)) })
    }

    async fn send(&self, message: Message) -> StoreResult<()> {
        match &self.queue {
            Some(queue) => queue.send(message).await.map_err(|_| StoreError::Closed),
            None => Err(StoreError::Closed),
        }
    }

    /// Has something written, and answers when it is committed.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Tx<'_>) -> StoreResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        let (reply, answer) = oneshot::channel();
        let lost =
            |error: &Failure| StoreError::Database { context: "commit", source: Box::new(Arc::clone(error)) };
        let work: Work = Box::new(move |tx| {
            let result = tx.map_err(lost).and_then(work);
            let good = result.is_ok();
            let answer: Answer = Box::new(move |committed| {
                let result = match committed {
                    Err(error) if good => Err(lost(error)),
                    _ => result,
                };
                // The caller may have gone; what was done stays done.
                let _ = reply.send(result);
            });
            (good, answer)
        });
        self.send(Message::Write(work)).await?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Moves the whole log into the database, as far as no reader holds it.
    pub(super) async fn checkpoint(&self) -> StoreResult<()> {
        let (reply, answer) = oneshot::channel();
        self.send(Message::Checkpoint(reply)).await?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Finishes what is queued and closes the connection. Later writes fail.
    pub(super) async fn close(&self) {
        let (reply, answer) = oneshot::channel();
        if self.send(Message::Close(reply)).await.is_ok() {
            // Dropped unanswered, it is just as closed.
            let _ = answer.await;
        }
    }
}

impl Drop for Writer {
    /// Waits for the thread: whoever opens the database next must find everything that was asked for in it.
    fn drop(&mut self) {
        self.queue = None;
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the store's writer panicked");
        }
    }
}

fn connect(path: &Path, durable: bool) -> rusqlite::Result<Connection> {
    let db = Connection::open(path)?;
    db.busy_timeout(BUSY)?;
    db.set_prepared_statement_cache_capacity(STATEMENTS);
    db.pragma_update(None, "foreign_keys", true)?;
    // What savepoints remember goes into memory: a file took a fifth of the writer's time.
    db.pragma_update(None, "temp_store", "MEMORY")?;
    db.pragma_update(None, "synchronous", if durable { "FULL" } else { "OFF" })?;
    db.pragma_update(None, "wal_autocheckpoint", LOG_PAGES)?;
    db.pragma_update(None, "journal_size_limit", LOG_BYTES)?;
    Ok(db)
}

fn run(db: &Connection, mut messages: mpsc::Receiver<Message>, changes: &Changes) {
    let mut group = Vec::with_capacity(GROUP);
    let (mut closing, mut several) = (None, false);
    while let Some(first) = messages.blocking_recv() {
        if several {
            std::thread::sleep(GATHER);
        }
        let mut next = Some(first);
        let mut checkpoint = None;
        while let Some(message) = next.take() {
            match message {
                Message::Write(work) => group.push(work),
                Message::Checkpoint(reply) => checkpoint = Some(reply),
                Message::Close(reply) => {
                    closing = Some(reply);
                    messages.close();
                }
            }
            if group.len() < GROUP && checkpoint.is_none() {
                next = messages.try_recv().ok();
            }
        }
        several = group.len() > 1;
        commit(db, &mut group, changes);
        if let Some(reply) = checkpoint {
            let _ = reply.send(fold(db));
        }
    }
    if let Err(error) = fold(db) {
        tracing::warn!(error = &error as &dyn std::error::Error, "the database's log was not folded in");
    }
    drop(closing);
}

/// Moves the log into the database and cuts its file to nothing, as far as no reader holds it: a copy reads one state for
/// as long as it takes, and the writes do not wait for it. What is left is moved the next time.
fn fold(db: &Connection) -> StoreResult<()> {
    let context = failed("fold the log in");
    db.busy_timeout(Duration::ZERO).map_err(&context)?;
    let folded = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, bool>(0));
    db.busy_timeout(BUSY).map_err(&context)?;
    if folded.map_err(&context)? {
        tracing::debug!("the database's log is being read, the rest of it is folded in later");
    }
    Ok(())
}

/// Does all writes of a group in one transaction, and answers them.
fn commit(db: &Connection, group: &mut Vec<Work>, changes: &Changes) {
    if group.is_empty() {
        return;
    }
    let mut answers = Vec::with_capacity(group.len());
    let mut done = Commit::default();
    let committed = transact(db, group.drain(..), &mut answers, &mut done, changes.head());
    match &committed {
        Ok(()) => changes.apply(done),
        Err(error) => {
            tracing::error!(error = error as &dyn std::error::Error, writes = answers.len(), "commit failed");
            if !db.is_autocommit()
                && let Err(error) = db.execute_batch("ROLLBACK")
            {
                tracing::error!(%error, "the failed commit was not rolled back");
            }
        }
    }
    for answer in answers {
        answer(committed.as_ref().copied());
    }
}

/// Runs a statement without arguments.
fn run_bare(db: &Connection, sql: &'static str) -> Result<(), Failure> {
    db.prepare_cached(sql).and_then(|mut statement| statement.execute([])).map(drop).map_err(Arc::new)
}

fn transact(
    db: &Connection,
    group: impl Iterator<Item = Work>,
    answers: &mut Vec<Answer>,
    done: &mut Commit,
    mut head: u64,
) -> Result<(), Failure> {
    let mut so_far = run_bare(db, "BEGIN IMMEDIATE");
    for work in group {
        if so_far.is_ok() {
            so_far = run_bare(db, "SAVEPOINT one");
        }
        if let Err(error) = &so_far {
            answers.push(work(Err(error)).1);
            continue;
        }
        let before = (head, done.events.len(), done.rows.len(), done.floor);
        let (good, answer) = work(Ok(&mut Tx { db, done, head: &mut head }));
        answers.push(answer);
        if !good {
            head = before.0;
            done.events.truncate(before.1);
            done.rows.truncate(before.2);
            done.floor = before.3;
        }
        so_far = if db.is_autocommit() {
            // A full disk or an I/O error: SQLite has rolled the whole transaction back by itself.
            let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ABORT_ROLLBACK);
            Err(Arc::new(rusqlite::Error::SqliteFailure(code, None)))
        } else if good {
            run_bare(db, "RELEASE one")
        } else {
            run_bare(db, "ROLLBACK TO one").and_then(|()| run_bare(db, "RELEASE one"))
        };
    }
    so_far.and_then(|()| run_bare(db, "COMMIT"))
}

/// What a write may do.
pub(super) struct Tx<'a> {
    pub(super) db: &'a Connection,
    done: &'a mut Commit,
    head: &'a mut u64,
}

impl Tx<'_> {
    /// Runs a statement and gives how many rows it changed.
    pub(super) fn execute(&self, sql: &str, params: impl Params) -> rusqlite::Result<usize> {
        self.db.prepare_cached(sql)?.execute(params)
    }

    /// Runs a statement that must change exactly one row, which is otherwise not as the caller thought.
    pub(super) fn execute_one(&self, kind: &'static str, sql: &str, params: impl Params) -> StoreResult<()> {
        match self.execute(sql, params).map_err(constraint(kind))? {
            1 => Ok(()),
            _ => Err(StoreError::Changed(kind)),
        }
    }

    /// Shows a row to those who watch, once it is committed.
    pub(super) fn show(&mut self, row: RowChange) {
        self.done.rows.push(row);
    }

    /// Says which event is the oldest from now on.
    pub(super) fn set_floor(&mut self, floor: u64) {
        self.done.floor = Some(floor);
    }

    /// Writes an event under the next revision.
    pub(super) fn event(&mut self, mut event: Event) -> StoreResult<()> {
        event.revision = *self.head + 1;
        self.execute(
            "INSERT INTO events (revision, at, kind, vm, pool, lease, template, from_state, to_state, ended, cause,
                actor, duration, agent)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            rusqlite::params![
                super::row::int(event.revision),
                micros(event.at),
                event.kind.as_str(),
                event.vm.as_ref().map(VmId::as_str),
                event.pool.as_ref().map(PoolId::as_str),
                event.lease.as_ref().map(LeaseId::as_str),
                event.template.as_ref().map(TemplateId::as_str),
                event.moved.map(|(from, _)| from.as_str()),
                event.moved.map(|(_, to)| to.as_str()),
                event.ended.map(crate::model::lease::EndedAs::as_str),
                event.cause,
                event.actor,
                event.duration.map(super::row::duration),
                event.agent.as_ref().map(AgentId::as_str),
            ],
        )
        .map_err(failed("write an event"))?;
        *self.head = event.revision;
        self.done.events.push(Arc::new(event));
        Ok(())
    }
}

/// Gives a failure its context.
pub(super) fn failed(context: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
    move |source| StoreError::Database { context, source: Box::new(source) }
}

/// Tells broken uniqueness and references from other failures of a write.
pub(super) fn constraint(kind: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
    use rusqlite::ffi::{
        SQLITE_CONSTRAINT_FOREIGNKEY, SQLITE_CONSTRAINT_PRIMARYKEY, SQLITE_CONSTRAINT_TRIGGER,
        SQLITE_CONSTRAINT_UNIQUE,
    };
    move |source| match source.sqlite_error() {
        Some(error) if error.code == ErrorCode::ConstraintViolation => match error.extended_code {
            SQLITE_CONSTRAINT_PRIMARYKEY | SQLITE_CONSTRAINT_UNIQUE => StoreError::Exists(kind),
            SQLITE_CONSTRAINT_FOREIGNKEY | SQLITE_CONSTRAINT_TRIGGER => StoreError::Referred(kind),
            _ => StoreError::Database { context: "write a row", source: Box::new(source) },
        },
        _ => StoreError::Database { context: "write a row", source: Box::new(source) },
    }
}
