//! The thread that owns the keyboard and mouse: one batch after the other, each at most once per session.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use hvkube_proto::guest::v1 as pb;
use tokio::sync::oneshot;

use super::{DisplayError, Input, InputError, Probed, batch};

/// Batches that may wait for the present one; a host sends one at a time.
pub(super) const QUEUE: usize = 32;
/// How many batches of a session are remembered.
const REMEMBERED: usize = 256;
/// How long after the last batch the keyboard is put back in order.
const IDLE_AFTER: Duration = Duration::from_secs(1);

/// Tells a batch in progress that nobody waits for it any more.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<(Mutex<bool>, Condvar)>);

impl Cancel {
    /// Ends the batch at its next event, and any pause at once.
    pub fn cancel(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }

    /// Fails when cancelled.
    ///
    /// # Errors
    /// [`InputError::Cancelled`].
    pub fn check(&self) -> Result<(), InputError> {
        self.sleep(Duration::ZERO)
    }

    /// Sleeps, unless cancelled.
    ///
    /// # Errors
    /// [`InputError::Cancelled`].
    pub fn sleep(&self, time: Duration) -> Result<(), InputError> {
        let cancelled = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.0.1.wait_timeout_while(cancelled, time, |cancelled| !*cancelled);
        let (cancelled, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if *cancelled { Err(InputError::Cancelled) } else { Ok(()) }
    }
}

pub(super) enum Job {
    Batch { request: pb::InputRequest, cancel: Cancel, reply: oneshot::Sender<pb::InputResponse> },
    Probe(oneshot::Sender<Result<Probed, InputError>>),
    EndSession,
}

/// Access to the one thread that drives an [`Input`]: a thread of its own, or one that is borrowed while there is work.
#[derive(Clone, Debug)]
pub struct InputThread {
    way: Way,
}

#[derive(Clone)]
enum Way {
    Thread(SyncSender<Job>),
    #[cfg(feature = "sim")]
    Borrowed(Arc<super::borrowed::Borrowed>),
}

impl std::fmt::Debug for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Thread(_) => "Thread",
            #[cfg(feature = "sim")]
            Self::Borrowed(_) => "Borrowed",
        })
    }
}

impl InputThread {
    /// Starts the thread. It ends, having released and restored everything, when all handles are gone.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(input: impl Input) -> std::io::Result<Self> {
        let (jobs, queue) = sync_channel(QUEUE);
        std::thread::Builder::new().name("input".into()).spawn(move || run(input, &queue))?;
        Ok(Self { way: Way::Thread(jobs) })
    }

    /// Borrows a thread of the runtime's blocking pool while there is a batch to do, so that ten thousand desktops at rest
    /// cost no thread. For an input that never blocks by itself; it is not told when it is idle.
    #[cfg(feature = "sim")]
    #[must_use]
    pub fn borrowed(input: impl Input) -> Self {
        Self { way: Way::Borrowed(Arc::new(super::borrowed::Borrowed::new(Box::new(input)))) }
    }

    fn send(&self, job: Job) -> Result<(), DisplayError> {
        match &self.way {
            Way::Thread(jobs) => jobs.try_send(job).map_err(|e| match e {
                TrySendError::Full(_) => DisplayError::Busy,
                TrySendError::Disconnected(_) => DisplayError::Gone("the input thread has ended".into()),
            }),
            #[cfg(feature = "sim")]
            Way::Borrowed(borrowed) => borrowed.send(job),
        }
    }

    /// Does a batch, or tells what became of it when it was done before. Dropping the future stops the batch.
    pub(super) async fn batch(&self, request: pb::InputRequest) -> Result<pb::InputResponse, DisplayError> {
        struct CancelOnDrop(Cancel);
        impl Drop for CancelOnDrop {
            fn drop(&mut self) {
                self.0.cancel();
            }
        }
        let guard = CancelOnDrop(Cancel::default());
        let (reply, answer) = oneshot::channel();
        self.send(Job::Batch { request, cancel: guard.0.clone(), reply })?;
        answer.await.map_err(|_| DisplayError::Gone("the input thread has ended".into()))
    }

    pub(super) async fn probe(&self) -> Result<Result<Probed, InputError>, DisplayError> {
        let (reply, answer) = oneshot::channel();
        self.send(Job::Probe(reply))?;
        answer.await.map_err(|_| DisplayError::Gone("the input thread has ended".into()))
    }

    /// Releases what the session holds and forgets its batches, once the batch in progress has noticed its end.
    pub(super) fn end_session(&self) {
        // Every sender of a full queue is being dropped with the session, so there is room in a moment; the thread never
        // waits for anything but the display server.
        match &self.way {
            Way::Thread(jobs) => {
                let jobs = jobs.clone();
                if let Err(TrySendError::Full(job)) = jobs.try_send(Job::EndSession) {
                    let wait = move || drop(jobs.send(job));
                    let _thread = std::thread::Builder::new().name("end-session".into()).spawn(wait);
                }
            }
            #[cfg(feature = "sim")]
            Way::Borrowed(borrowed) => borrowed.end_session(),
        }
    }
}

/// Does jobs, and remembers the batches of the present session: id and outcome, oldest first.
pub(super) struct Worker {
    done: VecDeque<(String, pb::InputResponse)>,
    input: Box<dyn Input>,
}

impl Worker {
    pub(super) fn new(input: Box<dyn Input>) -> Self {
        Self { done: VecDeque::new(), input }
    }

    pub(super) fn work(&mut self, job: Job) {
        match job {
            Job::Batch { request, cancel, reply } => {
                if let Some((_, outcome)) = self.done.iter().find(|(id, _)| *id == request.batch_id) {
                    let _nobody_waits = reply.send(pb::InputResponse { replayed: true, ..outcome.clone() });
                    return;
                }
                let outcome = batch::run(&mut *self.input, &request.events, &cancel);
                if self.done.len() == REMEMBERED {
                    self.done.pop_front();
                }
                self.done.push_back((request.batch_id, outcome.clone()));
                let _nobody_waits = reply.send(outcome);
            }
            Job::Probe(reply) => {
                let _nobody_waits = reply.send(self.input.probe());
            }
            Job::EndSession => {
                self.done = VecDeque::new();
                if let Err(error) = self.input.release_all() {
                    tracing::warn!(%error, "cannot release held keys");
                }
            }
        }
    }
}

fn run(input: impl Input, queue: &Receiver<Job>) {
    let mut worker = Worker::new(Box::new(input));
    let mut idle_in = Some(IDLE_AFTER);
    loop {
        let job = match idle_in {
            Some(time) => queue.recv_timeout(time),
            None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match job {
            Ok(job) => {
                if !matches!(job, Job::Probe(_)) {
                    idle_in = Some(IDLE_AFTER);
                }
                worker.work(job);
            }
            Err(RecvTimeoutError::Timeout) => idle_in = worker.input.idle(),
            Err(RecvTimeoutError::Disconnected) => {
                let _display_gone = worker.input.release_all();
                let _last = worker.input.idle();
                return;
            }
        }
    }
}
