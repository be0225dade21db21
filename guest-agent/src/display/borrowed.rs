//! An input that has no thread of its own: whoever brings the first job has the queue worked off by a thread of the
//! runtime's blocking pool.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;

use super::input::{Job, QUEUE, Worker};
use super::{DisplayError, Input};

pub(super) struct Borrowed {
    queue: Mutex<Queue>,
    /// Held by whoever works; never waited for by async code.
    worker: Mutex<Worker>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Somebody works, and will look here again before he leaves.
    busy: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Borrowed {
    pub(super) fn new(input: Box<dyn Input>) -> Self {
        Self { queue: Mutex::default(), worker: Mutex::new(Worker::new(input)) }
    }

    pub(super) fn send(self: &Arc<Self>, job: Job) -> Result<(), DisplayError> {
        let mut queue = lock(&self.queue);
        if queue.jobs.len() >= QUEUE {
            return Err(DisplayError::Busy);
        }
        self.add(&mut queue, job);
        Ok(())
    }

    /// Beyond the bound, too: a session ends once, and its end must not be lost.
    pub(super) fn end_session(self: &Arc<Self>) {
        self.add(&mut lock(&self.queue), Job::EndSession);
    }

    fn add(self: &Arc<Self>, queue: &mut Queue, job: Job) {
        if !queue.busy && !matches!(job, Job::Batch { .. }) {
            // Only batches wait, and nobody works: this one takes no longer here than being handed over would.
            lock(&self.worker).work(job);
            return;
        }
        queue.jobs.push_back(job);
        if queue.busy {
            return;
        }
        let this = Arc::clone(self);
        match Handle::try_current() {
            Ok(runtime) => {
                queue.busy = true;
                runtime.spawn_blocking(move || this.work_off());
            }
            // Only where a runtime is being torn down, and then nobody waits for an answer.
            Err(_) => queue.jobs.clear(),
        }
    }

    fn work_off(&self) {
        loop {
            let job = {
                let mut queue = lock(&self.queue);
                let Some(job) = queue.jobs.pop_front() else {
                    queue.busy = false;
                    return;
                };
                job
            };
            lock(&self.worker).work(job);
        }
    }
}
