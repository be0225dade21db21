//! VMs that run: their guests, and the streams to them.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Mutex, PoisonError, Weak};
use std::time::Duration;

use hvkube_guest::sim::{Board, Guest, Hardware, State};
use tokio::io::DuplexStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::records::VmRecord;
use super::world::World;
use crate::hypervisor::Run;
use crate::model::ids::VmId;
use crate::model::template::{Network, TemplateSpec};

/// What may be on its way in one direction. A frame of a drawn desktop has a few kilobytes, and what is once used of the
/// buffer stays for as long as the stream.
const STREAM: usize = 16 << 10;

/// Why the guest does nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Still {
    pub(super) paused: bool,
    pub(super) hung: bool,
}

impl Still {
    fn any(self) -> bool {
        self.paused || self.hung
    }
}

/// One run of a VM.
pub(super) struct Live {
    pub(super) run: u64,
    since: std::time::Instant,
    /// When the agent is up.
    agent: Mutex<Instant>,
    still: watch::Sender<Still>,
    /// Made when somebody wants to talk to it: most VMs that run are never looked at.
    guest: Mutex<Option<Guest>>,
    /// Ends the session; gone once the run has ended.
    session: Mutex<Option<CancellationToken>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Live {
    pub(super) fn new(run: u64, agent_in: Duration, still: Still) -> Self {
        Self {
            run,
            since: std::time::Instant::now(),
            agent: Mutex::new(Instant::now() + agent_in),
            still: watch::Sender::new(still),
            guest: Mutex::default(),
            session: Mutex::new(Some(CancellationToken::new())),
        }
    }

    /// All runs are the daemon's own process.
    pub(super) fn run(&self) -> Run {
        run(self.run)
    }

    pub(super) fn set_still(&self, change: impl FnOnce(&mut Still)) {
        self.still.send_modify(change);
    }

    /// The guest, made at the first call.
    pub(super) fn guest(&self, make: impl FnOnce() -> Guest) -> Guest {
        lock(&self.guest).get_or_insert_with(make).clone()
    }

    /// What the guest remembers at this moment, if it remembers more than the record.
    pub(super) fn state(&self) -> Option<State> {
        lock(&self.guest).as_ref().map(Guest::state)
    }

    /// Ends the run for good; gives what the guest remembered, if that is more than the record.
    pub(super) fn end(&self) -> Option<State> {
        if let Some(session) = lock(&self.session).take() {
            session.cancel();
        }
        lock(&self.guest).take().map(|guest| guest.freeze())
    }

    /// Ends the guest, and has another one boot on the same run.
    pub(super) fn reboot(&self, agent_in: Duration) -> Option<State> {
        if let Some(session) = &*lock(&self.session) {
            session.cancel();
        }
        *lock(&self.agent) = Instant::now() + agent_in;
        lock(&self.guest).take().map(|guest| guest.freeze())
    }

    /// A new stream to the guest; an older one is cut. When the run has just ended, so has the stream.
    pub(super) fn dial(&self, guest: Guest) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(STREAM);
        let (agent, still) = (*lock(&self.agent), self.still.subscribe());
        if let Some(session) = &mut *lock(&self.session) {
            let token = CancellationToken::new();
            std::mem::replace(session, token.clone()).cancel();
            tokio::spawn(token.run_until_cancelled_owned(answer(guest, theirs, agent, still)));
        }
        ours
    }
}

impl Drop for Live {
    /// Whoever held the guest's stream finds its end.
    fn drop(&mut self) {
        drop(self.end());
    }
}

pub(super) fn run(number: u64) -> Run {
    Run { number, pid: std::process::id() }
}

/// The guest's end of a stream: silent until the agent is up, and whenever the guest stands still.
async fn answer(guest: Guest, stream: DuplexStream, agent: Instant, mut still: watch::Receiver<Still>) {
    tokio::time::sleep_until(agent).await;
    if still.wait_for(|still| !still.any()).await.is_err() {
        return;
    }
    // Boxed: the task of a VM that only waits stays small.
    let mut session = Box::pin(guest.serve(stream));
    loop {
        tokio::select! {
            biased;
            stopped = still.wait_for(|still| still.any()) => {
                if stopped.is_err() {
                    return;
                }
            }
            ended = &mut session => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "no session with a simulated guest");
                }
                return;
            }
        }
        if still.wait_for(|still| !still.any()).await.is_err() {
            return;
        }
    }
}

/// What the guest's machine is made of.
pub(super) fn hardware(spec: &TemplateSpec, record: &VmRecord, live: &Live) -> Hardware {
    Hardware {
        screen: (spec.display.width, spec.display.height),
        memory_bytes: spec.memory_mb << 20,
        address: (spec.network != Network::None).then(|| address(record)),
        booted: live.since,
    }
}

/// One of 10.64.0.0/10 that follows from the VM and from how often it has moved.
fn address(record: &VmRecord) -> IpAddr {
    let host =
        record.definition.uid.as_u64_pair().1.wrapping_add(u64::from(record.moved).wrapping_mul(0x9e37_79b9));
    let [a, b, c, ..] = host.to_le_bytes();
    Ipv4Addr::new(10, 64 | (a & 63), b, c | 1).into()
}

/// The machine as its guest sees it.
pub(super) struct Machine {
    pub(super) world: Weak<World>,
    pub(super) vm: VmId,
    pub(super) run: u64,
}

impl Board for Machine {
    fn changed(&self, state: &State) {
        if let Some(world) = self.world.upgrade() {
            world.remember(&self.vm, self.run, state);
        }
    }

    fn power(&self, reboot: bool) {
        if let Some(world) = self.world.upgrade() {
            world.power(&self.vm, self.run, reboot);
        }
    }
}
