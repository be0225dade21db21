//! Workflows that are programs in the guest: input on standard input, one JSON value on standard output.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use jiff::Timestamp;
use tokio::time::Instant;
use uuid::Uuid;

use super::request::GuestWorkflow;
use super::shots::Picture;
use super::supervise::{self, Over};
use super::{Busy, LOG_TEXT, acquire, change, give_back, refused, set_back, setback_of, worker};
use crate::guest::{ExecEvent, ExecParams};
use crate::model::agent::{Agent, Claim, LogEntry, LogSource, Runner, Setback};
use crate::model::error::{Error, Reason, Result};
use crate::model::ids::PoolId;
use crate::orchestrator::view::Granted;
use crate::orchestrator::{Orchestrator, Shared};
use crate::store::NextAgent;

/// How long one wait for a VM may take; then the agent is chosen anew, since more important ones may have come.
const VM_WAIT: Duration = Duration::from_secs(600);
/// The largest output, in bytes; the API's limit for workers too.
const MAX_OUTPUT: usize = 1 << 20;
/// After the program's time the guest gets this to say that it has killed it.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// The clock may be set: no pause is slept through for longer.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Lines of standard error are stored together, at most so many and so old.
const LOG_LINES: usize = 64;
const LOG_AGE: Duration = Duration::from_millis(500);

/// Programs under way in each pool.
type Running = Arc<Mutex<HashMap<PoolId, usize>>>;

struct Place(Running, PoolId);

impl Place {
    fn take(running: &Running, pool: &PoolId) -> Self {
        *lock(running).entry(pool.clone()).or_default() += 1;
        Self(Arc::clone(running), pool.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut running = lock(&self.0);
        if let Some(count) = running.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                running.remove(&self.1);
            }
        }
    }
}

fn lock(running: &Running) -> std::sync::MutexGuard<'_, HashMap<PoolId, usize>> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs agents of the daemon's own workflows, in the order of their rank, until the daemon stops.
pub(in crate::orchestrator) async fn dispatch(o: Orchestrator) {
    let shared = &o.0;
    let workflows: Vec<String> = shared.settings.agents.workflows.keys().cloned().collect();
    if workflows.is_empty() {
        return;
    }
    let running = Running::default();
    let mut free = shared.agents.free.subscribe();
    while !shared.stopping.is_cancelled() {
        free.borrow_and_update();
        let limit = shared.settings.agents.per_pool;
        let busy: Vec<PoolId> = lock(&running)
            .iter()
            .filter(|(_, count)| **count >= limit)
            .map(|(pool, _)| pool.clone())
            .collect();
        let next = NextAgent { workflows: &workflows, pool: None, busy: &busy };
        let now = Timestamp::now();
        let pause = match shared.store.next_agent(&next, now).await.map_err(Error::from) {
            Ok((Some(agent), _)) => match reserve(&o, agent).await {
                Ok(Some(agent)) => {
                    start(&o, agent, &running);
                    continue;
                }
                Ok(None) => continue,
                Err(error) => failed(&error),
            },
            Ok((None, pause_over)) => {
                pause_over.map_or(LOOK_EVERY, |at| at.duration_since(now).unsigned_abs().min(LOOK_EVERY))
            }
            Err(error) => failed(&error),
        };
        tokio::select! {
            () = shared.stopping.cancelled() => {}
            _ = free.changed() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

fn failed(error: &Error) -> Duration {
    tracing::warn!(error = error as &dyn std::error::Error, "no agent can be started");
    Duration::from_secs(1)
}

/// Takes an agent for its program; none when it was no longer free.
async fn reserve(o: &Orchestrator, agent: Agent) -> Result<Option<Agent>> {
    let claim = Claim {
        id: Uuid::new_v4(),
        runner: Runner::Guest,
        // Its submitter may look on.
        holder: agent.owner.clone(),
        worker: String::new(),
        lease: None,
        ttl: Duration::ZERO,
        expires: None,
        deadline: None,
    };
    let mut taken = false;
    let agent = change(&o.0, &agent.id, None, |agent, _, now| {
        taken = agent.reserve(claim.clone(), now).is_ok();
        Ok(())
    })
    .await?;
    Ok(taken.then_some(agent))
}

fn start(o: &Orchestrator, agent: Agent, running: &Running) {
    let (o, place) = (o.clone(), Place::take(running, &agent.spec.pool));
    let busy = Busy::new(&o.0, &agent);
    let tasks = o.0.tasks.clone();
    tasks.spawn(async move {
        let (id, epoch) = (agent.id.clone(), agent.epoch);
        match attempt(&o, agent).await {
            Over::Stopping => return,
            Over::Ended => {}
            Over::SetBack(why) => set_back(&o.0, &id, epoch, Setback::Failed, &why).await,
        }
        give_back(&o.0, &id, epoch).await;
        // The place first: who is told of it by the other must find it free.
        drop(place);
        drop(busy);
    });
}

/// One attempt, from the wait for a VM to the result.
async fn attempt(o: &Orchestrator, agent: Agent) -> Over {
    let shared = &o.0;
    let (id, epoch) = (&agent.id, agent.epoch);
    let mut pokes = shared.agents.pokes(id);
    let granted = tokio::select! {
        granted = acquire(o, &agent, &agent.owner, VM_WAIT, None, None) => granted,
        () = worker::ended(shared, id, epoch, &mut pokes) => return Over::Ended,
        () = shared.stopping.cancelled() => return Over::Stopping,
    };
    let Granted { lease, vm } = match granted {
        Ok(granted) => granted,
        Err(error) => {
            let Some(setback) = setback_of(&error) else { return Over::Stopping };
            set_back(shared, id, epoch, setback, &format!("got no vm: {error}")).await;
            return Over::Ended;
        }
    };
    let assigned = change(shared, id, None, |agent, log, now| {
        agent
            .assign(epoch, lease.id.clone(), vm.vm.id.clone(), now)
            .map_err(|why| refused(agent, epoch, why))?;
        log.daemon(format!("claim {epoch} on vm {}", vm.vm.id));
        Ok(())
    });
    let agent = match assigned.await {
        Ok(agent) => agent,
        Err(error) if matches!(error.reason, Reason::AgentEnded | Reason::AgentClaimLost) => {
            return Over::Ended;
        }
        Err(error) => return Over::SetBack(error.to_string()),
    };
    shared.agents.has_vm(id, &vm.vm.id);
    let Some(workflow) = shared.settings.agents.workflows.get(&agent.spec.workflow) else {
        return Over::SetBack("its workflow is no longer configured".into());
    };
    tokio::select! {
        // First: a program that loses its guest because of this has not failed.
        biased;
        () = supervise::suspended_becomes(o, &agent, &lease.id, true) => {
            set_back(shared, id, epoch, Setback::Interrupted, "its lease was preempted").await;
            Over::Ended
        }
        done = run(o, &agent, workflow) => match done {
            Ok(()) => Over::Ended,
            Err(Failed(Setback::Failed, why)) => Over::SetBack(why),
            Err(Failed(setback, why)) => {
                set_back(shared, id, epoch, setback, &why).await;
                Over::Ended
            }
        },
        // Dropping the program's stream kills it.
        over = supervise::over(o, id, epoch) => over,
    }
}

/// An attempt that failed.
struct Failed(Setback, String);

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        let setback = match error.reason {
            Reason::ProgramNotFound | Reason::GuestPermissionDenied => Setback::Final,
            _ => Setback::Failed,
        };
        Self(setback, error.to_string())
    }
}

/// Runs the program and writes down what came of it.
async fn run(o: &Orchestrator, agent: &Agent, workflow: &GuestWorkflow) -> Result<(), Failed> {
    let shared = &o.0;
    let (id, epoch) = (&agent.id, agent.epoch);
    let handle = match &agent.vm {
        Some(vm) => shared.registry.get(vm)?,
        None => return Err(Failed(Setback::Failed, "it has no vm".into())),
    };
    let session = handle.hub.session().map_err(Error::from)?;
    let session = session.ok_or_else(|| Failed(Setback::Failed, "no guest agent is connected".into()))?;
    let env = [
        ("HVKUBE_AGENT", id.to_string()),
        ("HVKUBE_WORKFLOW", agent.spec.workflow.clone()),
        ("HVKUBE_ATTEMPT", agent.attempt.to_string()),
    ];
    let params = ExecParams {
        argv: workflow.argv.clone(),
        env: env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        cwd: workflow.cwd.clone(),
        stdin: Bytes::from(agent.input.clone()),
        timeout: Some(agent.spec.timeout),
        as_root: workflow.as_root,
    };
    let deadline = Instant::now() + agent.spec.timeout + LAST_WORDS;
    let no_program = |error: crate::guest::GuestError| error.into_error(Reason::ProgramNotFound);
    let mut events = session.exec(params, deadline).await.map_err(no_program)?;
    let mut lines = Lines::new(agent);
    let mut output = Vec::new();
    let exit = loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = lines.due() => {
                lines.store(shared).await;
                continue;
            }
        };
        match event {
            Some(Ok(ExecEvent::Started { .. })) => {
                change(shared, id, None, |agent, _, now| {
                    agent.report(epoch, now).map_err(|why| refused(agent, epoch, why))
                })
                .await?;
            }
            Some(Ok(ExecEvent::Stdout(data))) => {
                if output.len() + data.len() > MAX_OUTPUT {
                    let why = format!("the program wrote more than {MAX_OUTPUT} bytes to standard output");
                    return Err(Failed(Setback::Final, why));
                }
                output.extend_from_slice(&data);
            }
            Some(Ok(ExecEvent::Stderr(data))) => {
                // In parts, or a message of nothing but line ends would become a hundred times as large.
                for part in data.chunks(LOG_TEXT) {
                    lines.add(part);
                    if lines.ready.len() >= LOG_LINES {
                        lines.store(shared).await;
                    }
                }
            }
            Some(Ok(ExecEvent::Exited { code, signal, timed_out })) => break (code, signal, timed_out),
            Some(Err(error)) => return Err(no_program(error).into()),
            None => return Err(Failed(Setback::Failed, "the program ended without its exit".into())),
        }
    };
    lines.finish();
    lines.store(shared).await;

    let mut pictures = Vec::new();
    if workflow.screenshot && super::shots::room(agent, 1).is_ok() {
        match Picture::of_vm(o, agent, "end").await {
            Ok(picture) => pictures.push(picture),
            Err(error) => {
                tracing::warn!(agent = %id, error = &error as &dyn std::error::Error, "no screenshot at the end");
            }
        }
    }
    let last = if lines.last.is_empty() { String::new() } else { format!(": {}", lines.last) };
    let result = match exit {
        (_, _, true) => {
            Err(Failed(Setback::Failed, format!("not done within {} s", agent.spec.timeout.as_secs())))
        }
        (0, 0, false) => json(&output),
        (_, signal @ 1.., false) => Err(Failed(Setback::Failed, format!("ended by signal {signal}{last}"))),
        (code, _, false) => Err(Failed(Setback::Failed, format!("exited with code {code}{last}"))),
    };
    o.with_pictures(id, pictures, |agent, _, now| {
        let done = match &result {
            Ok(output) => agent.complete(epoch, Ok(()), output.clone(), now),
            Err(Failed(setback, why)) => agent.set_back(epoch, *setback, why, now),
        };
        done.map_err(|why| refused(agent, epoch, why))
    })
    .await?;
    Ok(())
}

/// What a program wrote, as JSON text; nothing is an output too.
fn json(output: &[u8]) -> Result<String, Failed> {
    let wrong = |why: String| Failed(Setback::Final, format!("standard output is no JSON: {why}"));
    let text = std::str::from_utf8(output).map_err(|error| wrong(error.to_string()))?.trim();
    if !text.is_empty() {
        serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|error| wrong(error.to_string()))?;
    }
    Ok(text.to_owned())
}

/// Standard error on its way to the log, line by line.
struct Lines {
    number: u64,
    epoch: u64,
    rest: Vec<u8>,
    ready: Vec<LogEntry>,
    /// When the oldest line that is ready must be stored.
    due: Option<Instant>,
    last: String,
}

impl Lines {
    fn new(agent: &Agent) -> Self {
        Self {
            number: agent.number,
            epoch: agent.epoch,
            rest: Vec::new(),
            ready: Vec::new(),
            due: None,
            last: String::new(),
        }
    }

    fn add(&mut self, data: &[u8]) {
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(piece);
            // A guest may never end its line.
            if piece.ends_with(b"\n") || self.rest.len() >= LOG_TEXT {
                self.finish();
            }
        }
    }

    /// Takes what is there for a line.
    fn finish(&mut self) {
        let line = std::mem::take(&mut self.rest);
        for part in line.trim_ascii_end().chunks(LOG_TEXT) {
            let text: String = String::from_utf8_lossy(part)
                .chars()
                .map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c })
                .collect();
            let text = super::clip(text);
            self.last.clone_from(&text);
            self.last.truncate(self.last.floor_char_boundary(256));
            self.ready.push(LogEntry {
                sequence: 0,
                at: Timestamp::now(),
                source: LogSource::Stderr,
                epoch: self.epoch,
                text,
            });
        }
        if !self.ready.is_empty() && self.due.is_none() {
            self.due = Some(Instant::now() + LOG_AGE);
        }
    }

    async fn due(&self) {
        match self.due {
            Some(due) => tokio::time::sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    async fn store(&mut self, shared: &Shared) {
        self.due = None;
        let entries = std::mem::take(&mut self.ready);
        if entries.is_empty() {
            return;
        }
        if let Err(error) = shared.store.log_agent(self.number, entries).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "lines of an agent's log are lost");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_json_or_nothing() {
        assert_eq!(json(b" {\"a\": 1}\n").ok().as_deref(), Some("{\"a\": 1}"));
        assert_eq!(json(b"\n").ok().as_deref(), Some(""));
        for bad in [&b"done"[..], b"{} {}", b"{", &[0xff]] {
            assert!(json(bad).is_err(), "{bad:?}");
        }
    }
}
