//! QEMU's machine protocol: typed commands with deadlines, and what its events told last.
//!
//! Written here rather than on the `qapi` crate for three reasons found in its 0.15 source: dropping a command's future,
//! which is what a deadline does, makes the answer's arrival close the whole connection; an event that its QEMU 9.0
//! schema does not know does the same; and it allows one command in flight, while a resume sends four at once.
//!
//! One task reads and one writes. Commands are sent in the order of the calls of [`Qmp::send`], which does not wait, so
//! that several can be in flight; each [`Pending`] then waits for its own answer. Events are folded into [`Seen`], the
//! latest of each kind: nobody needs their history, and a slow reader can't fill anything.

use std::collections::HashMap;
use std::io;
use std::marker::PhantomData;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

pub(crate) mod commands;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;

use commands::{Capabilities, MigrationStatus};

/// Commands in flight; a VM's moves send four at most, screenshots and input of several clients share the rest.
const IN_FLIGHT: usize = 64;
/// Longest line accepted. `query-named-block-nodes` of a chain of 64 disks is the longest answer in use, below 1 MiB.
const MAX_LINE: u64 = 8 << 20;

/// Why a command had no good answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum QmpError {
    /// QEMU refused.
    #[error("qemu refused {command}: {reason}")]
    Refused {
        /// Its name.
        command: &'static str,
        /// QEMU's words.
        reason: String,
    },
    /// No answer within the deadline.
    #[error("qemu did not answer {0} in time")]
    Timeout(&'static str),
    /// The connection is gone, most likely because the process is.
    #[error("the connection to qemu's monitor is closed")]
    Closed,
    /// The answer was not of the shape that the command has.
    #[error("qemu's answer to {command} was not understood: {reason}")]
    Malformed {
        /// Its name.
        command: &'static str,
        /// What was wrong.
        reason: String,
    },
}

/// A command of the protocol.
pub(crate) trait Command: Serialize {
    /// What it answers.
    type Answer: DeserializeOwned;
    /// Its name on the wire.
    const NAME: &'static str;
    /// How long an answer may take. None of the commands in use waits for the guest or for bulk I/O; long work is
    /// started by a command and reported by events.
    const DEADLINE: Duration = Duration::from_secs(15);
}

/// What the events told, latest of each kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// State of the migration since [`Qmp::forget_migration`].
    pub(crate) migration: Option<MigrationStatus>,
    /// A shutdown was announced, by the guest or not.
    pub(crate) shutdown: Option<Shutdown>,
    /// The last time that QEMU stopped the CPUs by itself.
    pub(crate) halt: Option<Halt>,
    /// The connection ended.
    pub(crate) closed: bool,
}

/// A `BLOCK_IO_ERROR` event that stopped the CPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Halt {
    /// Counts them.
    pub(crate) number: u64,
    /// What could not be done, and why.
    pub(crate) reason: String,
}

/// A `SHUTDOWN` event.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Shutdown {
    /// The guest did it, in an orderly way.
    pub(crate) guest: bool,
}

#[derive(Serialize)]
struct Envelope<'a, C> {
    execute: &'static str,
    arguments: &'a C,
    id: u64,
}

#[derive(Deserialize)]
struct Refusal {
    desc: String,
}

/// Any message of QEMU; events of kinds that are not in use fall through to their name.
#[derive(Deserialize)]
struct Message {
    #[serde(rename = "return")]
    value: Option<serde_json::Value>,
    error: Option<Refusal>,
    id: Option<u64>,
    event: Option<String>,
    #[serde(default)]
    data: serde_json::Value,
}

type Answer = Result<serde_json::Value, String>;
type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Answer>>>>;

/// A connection to one QEMU.
#[derive(Debug)]
pub(crate) struct Qmp {
    lines: mpsc::Sender<Vec<u8>>,
    waiting: Waiting,
    next: AtomicU64,
    seen: watch::Sender<Seen>,
}

/// A command that was sent.
#[must_use]
pub(crate) struct Pending<C: Command> {
    answer: Result<oneshot::Receiver<Answer>, QmpError>,
    command: PhantomData<fn() -> C>,
}

impl<C: Command> Pending<C> {
    /// Waits for its answer.
    pub(crate) async fn answer(self) -> Result<C::Answer, QmpError> {
        let value = match timeout(C::DEADLINE, self.answer?).await {
            Err(_) => return Err(QmpError::Timeout(C::NAME)),
            Ok(Err(_)) => return Err(QmpError::Closed),
            Ok(Ok(Err(reason))) => return Err(QmpError::Refused { command: C::NAME, reason }),
            Ok(Ok(Ok(value))) => value,
        };
        serde_json::from_value(value)
            .map_err(|error| QmpError::Malformed { command: C::NAME, reason: error.to_string() })
    }
}

impl Qmp {
    /// Connects to a monitor, waits for its greeting and negotiates. QEMU greets before its machine is built, and
    /// answers only after, so this returns when the process is fully up.
    pub(crate) async fn connect(path: &Path, within: Duration) -> io::Result<Self> {
        let stream = UnixStream::connect(path).await?;
        let (read, write) = stream.into_split();
        let (lines, outbox) = mpsc::channel(IN_FLIGHT);
        let waiting = Waiting::default();
        let (seen, _) = watch::channel(Seen::default());
        tokio::spawn(send_lines(write, outbox));
        tokio::spawn(read_messages(read, Arc::clone(&waiting), seen.clone()));
        let qmp = Self { lines, waiting, next: AtomicU64::new(1), seen };
        match timeout(within, qmp.send(&Capabilities {}).answer()).await {
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "qemu's monitor did not come up")),
            Ok(Err(error)) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, error)),
            Ok(Ok(_)) => Ok(qmp),
        }
    }

    /// Sends a command without waiting.
    pub(crate) fn send<C: Command>(&self, command: &C) -> Pending<C> {
        Pending { answer: self.post(command), command: PhantomData }
    }

    /// Sends a command and waits for its answer.
    pub(crate) async fn run<C: Command>(&self, command: &C) -> Result<C::Answer, QmpError> {
        self.send(command).answer().await
    }

    /// What the events told; changes wake the receiver.
    pub(crate) fn seen(&self) -> watch::Receiver<Seen> {
        self.seen.subscribe()
    }

    /// Clears the state of an earlier migration, before the next is begun.
    pub(crate) fn forget_migration(&self) {
        self.seen.send_modify(|seen| seen.migration = None);
    }

    /// Waits until the migration has ended one way or the other.
    pub(crate) async fn migration_end(&self, within: Duration) -> Result<MigrationStatus, QmpError> {
        let mut seen = self.seen();
        let end = seen.wait_for(|seen| seen.closed || seen.migration.is_some_and(MigrationStatus::is_end));
        match timeout(within, end).await {
            Err(_) => Err(QmpError::Timeout("migrate")),
            Ok(Err(_)) => Err(QmpError::Closed),
            Ok(Ok(seen)) => match seen.migration {
                Some(status) if status.is_end() => Ok(status),
                _ => Err(QmpError::Closed),
            },
        }
    }

    fn post<C: Command>(&self, command: &C) -> Result<oneshot::Receiver<Answer>, QmpError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut line = serde_json::to_vec(&Envelope { execute: C::NAME, arguments: command, id })
            .map_err(|error| QmpError::Malformed { command: C::NAME, reason: error.to_string() })?;
        line.push(b'\n');
        let (done, answer) = oneshot::channel();
        lock(&self.waiting).insert(id, done);
        // Checked after the insertion: the reader marks the end before it empties the table, so one of the two sees it.
        if self.seen.borrow().closed || self.lines.try_send(line).is_err() {
            lock(&self.waiting).remove(&id);
            return Err(QmpError::Closed);
        }
        Ok(answer)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn send_lines(mut write: OwnedWriteHalf, mut outbox: mpsc::Receiver<Vec<u8>>) {
    while let Some(line) = outbox.recv().await {
        if write.write_all(&line).await.is_err() {
            // The reader sees the end too, and answers whoever waits.
            return;
        }
    }
}

async fn read_messages(read: impl AsyncRead + Unpin, waiting: Waiting, seen: watch::Sender<Seen>) {
    let mut read = BufReader::new(read);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut read).take(MAX_LINE).read_until(b'\n', &mut line).await {
            Ok(length) if length > 0 && line.ends_with(b"\n") => {}
            _ => break,
        }
        match serde_json::from_slice::<Message>(&line) {
            Ok(message) => deliver(message, &waiting, &seen),
            Err(error) => tracing::warn!(%error, "skipping a line of qemu's monitor"),
        }
    }
    seen.send_modify(|seen| seen.closed = true);
    lock(&waiting).clear();
}

fn deliver(message: Message, waiting: &Waiting, seen: &watch::Sender<Seen>) {
    if let Some(event) = message.event {
        note(&event, message.data, seen);
        return;
    }
    let Some(done) = message.id.and_then(|id| lock(waiting).remove(&id)) else { return };
    let answer = match message.error {
        Some(refusal) => Err(refusal.desc),
        None => Ok(message.value.unwrap_or_default()),
    };
    // Whoever asked may have given up.
    let _ = done.send(answer);
}

fn note(event: &str, data: serde_json::Value, seen: &watch::Sender<Seen>) {
    #[derive(Deserialize)]
    struct Migration {
        status: MigrationStatus,
    }
    #[derive(Deserialize)]
    struct IoError {
        operation: String,
        action: String,
        #[serde(default)]
        reason: String,
    }
    match event {
        // With `report` the guest was told, and goes on.
        "BLOCK_IO_ERROR" => {
            if let Ok(IoError { operation, action, reason }) = serde_json::from_value(data)
                && action == "stop"
            {
                seen.send_modify(|seen| {
                    let number = seen.halt.as_ref().map_or(0, |halt| halt.number) + 1;
                    seen.halt = Some(Halt {
                        number,
                        reason: format!("the host can't {operation} its disk: {reason}"),
                    });
                });
            }
        }
        "MIGRATION" => {
            if let Ok(Migration { status }) = serde_json::from_value(data) {
                seen.send_modify(|seen| seen.migration = Some(status));
            }
        }
        "SHUTDOWN" => {
            if let Ok(shutdown) = serde_json::from_value(data) {
                seen.send_modify(|seen| seen.shutdown = Some(shutdown));
            }
        }
        _ => tracing::trace!(event, "qemu event"),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixListener;

    use super::commands::{Cont, QueryStatus, RunState};
    use super::*;

    async fn pair() -> (tempfile::TempDir, Qmp, BufReader<UnixStream>) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("qmp");
        let listener = UnixListener::bind(&path).expect("bind");
        let served = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("accept");
            let mut stream = BufReader::new(stream);
            stream.write_all(b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\n").await.expect("greet");
            let id = request(&mut stream).await.1;
            reply(&mut stream, &format!("{{\"return\": {{}}, \"id\": {id}}}")).await;
            stream
        });
        let qmp = Qmp::connect(&path, Duration::from_secs(5)).await.expect("connect");
        (dir, qmp, served.await.expect("server"))
    }

    async fn request(stream: &mut BufReader<UnixStream>) -> (String, u64) {
        let mut line = String::new();
        stream.read_line(&mut line).await.expect("a line");
        let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        (value["execute"].as_str().expect("name").to_owned(), value["id"].as_u64().expect("id"))
    }

    async fn reply(stream: &mut BufReader<UnixStream>, line: &str) {
        stream.write_all(format!("{line}\r\n").as_bytes()).await.expect("reply");
    }

    #[tokio::test]
    async fn answers_find_their_commands_in_any_order_and_refusals_carry_the_reason() {
        let (_dir, qmp, mut server) = pair().await;
        let (status, cont) = (qmp.send(&QueryStatus {}), qmp.send(&Cont {}));
        let (first, second) = (request(&mut server).await, request(&mut server).await);
        assert_eq!((first.0.as_str(), second.0.as_str()), ("query-status", "cont"));
        reply(
            &mut server,
            &format!(
                "{{\"error\": {{\"class\": \"GenericError\", \"desc\": \"no\"}}, \"id\": {}}}",
                second.1
            ),
        )
        .await;
        reply(&mut server, &format!("{{\"return\": {{\"status\": \"paused\"}}, \"id\": {}}}", first.1)).await;
        assert_eq!(status.answer().await.expect("status").status, RunState::Paused);
        assert_eq!(cont.answer().await, Err(QmpError::Refused { command: "cont", reason: "no".to_owned() }));
    }

    #[tokio::test]
    async fn unknown_events_and_abandoned_commands_do_no_harm() {
        let (_dir, qmp, mut server) = pair().await;
        drop(qmp.send(&Cont {}));
        let id = request(&mut server).await.1;
        reply(&mut server, "{\"event\": \"NEVER_HEARD\", \"data\": {\"x\": 1}, \"timestamp\": {}}").await;
        reply(&mut server, &format!("{{\"return\": {{}}, \"id\": {id}}}")).await;
        reply(&mut server, "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"setup\"}}").await;
        reply(&mut server, "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"completed\"}}").await;
        let end = qmp.migration_end(Duration::from_secs(5)).await.expect("an end");
        assert_eq!(end, MigrationStatus::Completed);
    }

    #[tokio::test]
    async fn a_disk_error_that_stops_the_cpus_is_seen_each_time() {
        let (_dir, qmp, mut server) = pair().await;
        let error = |action: &str| {
            format!(
                "{{\"event\": \"BLOCK_IO_ERROR\", \"data\": {{\"device\": \"\", \"operation\": \"write\", \
                 \"action\": \"{action}\", \"nospace\": true, \"reason\": \"No space left on device\"}}}}"
            )
        };
        for action in ["report", "stop", "stop"] {
            reply(&mut server, &error(action)).await;
        }
        let mut seen = qmp.seen();
        let second = seen.wait_for(|seen| seen.halt.as_ref().is_some_and(|halt| halt.number == 2)).await;
        let halt = second.expect("open").halt.clone().expect("seen");
        assert_eq!(halt.reason, "the host can't write its disk: No space left on device");
    }

    #[tokio::test]
    async fn a_dead_qemu_fails_what_waits_and_what_comes() {
        let (_dir, qmp, mut server) = pair().await;
        let waiting = qmp.send(&Cont {});
        request(&mut server).await;
        drop(server);
        assert_eq!(waiting.answer().await, Err(QmpError::Closed));
        assert_eq!(qmp.run(&Cont {}).await, Err(QmpError::Closed));
        assert_eq!(qmp.migration_end(Duration::from_secs(5)).await, Err(QmpError::Closed));
    }
}
