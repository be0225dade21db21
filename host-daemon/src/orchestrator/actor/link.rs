//! Keeps a session with the agent of a running VM.
//!
//! While a VM runs, a task connects, tells everybody, and connects again whenever the session ends. Before the VM is
//! saved the link is closed, and [`Link::close`] only returns once the stream is closed for sure: the guest must see its
//! port close before its memory is written.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Actor, Shared};
use crate::display::Hub;
use crate::guest::{AttachParams, Heartbeat, Identity, OpenOptions, Session, connect};
use crate::hypervisor::Hypervisor;
use crate::model::ids::VmId;
use crate::model::mac_address;
use crate::orchestrator::view::GuestView;

/// Pauses after a failed try: a guest that boots is asked often enough, one that has no agent not too often.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A guest whose desktop hangs must not hold up the end of its lease for longer.
const RELEASE: Duration = Duration::from_secs(2);

/// The link to one VM's agent.
pub(in crate::orchestrator) struct Link {
    hv: Arc<dyn Hypervisor>,
    vm: VmId,
    attach: AttachParams,
    try_for: Duration,
    hub: Hub,
    session: watch::Sender<Option<Session>>,
    guest: watch::Sender<GuestView>,
    task: Mutex<Option<(CancellationToken, JoinHandle<()>)>>,
}

impl Link {
    pub(super) fn new(shared: &Shared, vm: VmId, uid: Uuid, hub: Hub) -> Self {
        let identity = shared.settings.apply_identity.then(|| Identity {
            hostname: vm.to_string(),
            machine_id: *uid.as_bytes(),
            mac: Some(mac_address(uid)),
        });
        Self {
            hv: Arc::clone(&shared.hv),
            vm,
            attach: AttachParams { identity, reseed: true },
            try_for: shared.settings.agent_timeout,
            hub,
            session: watch::Sender::new(None),
            guest: watch::Sender::new(GuestView::default()),
            task: Mutex::new(None),
        }
    }

    /// The session, as it comes and goes.
    pub(in crate::orchestrator) fn session(&self) -> watch::Receiver<Option<Session>> {
        self.session.subscribe()
    }

    /// Number of the session there is.
    pub(super) fn epoch(&self) -> Option<u64> {
        self.session.borrow().as_ref().filter(|session| !session.is_closed()).map(Session::epoch)
    }

    pub(super) fn guest(&self) -> watch::Receiver<GuestView> {
        self.guest.subscribe()
    }

    /// Begins to connect; gives the number that the first session will have. `glance`: somebody waits for the desktop, who
    /// takes the session's first look at it.
    pub(super) fn open(self: &Arc<Self>, last_epoch: u64, glance: bool) -> u64 {
        let mut slot = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, task)) = &*slot
            && !task.is_finished()
        {
            return last_epoch;
        }
        let epoch = next_epoch(last_epoch);
        let cancel = CancellationToken::new();
        let this = Arc::clone(self);
        let token = cancel.clone();
        let task = tokio::spawn(async move {
            let _ = token.run_until_cancelled(this.keep(epoch, glance)).await;
            this.ended();
        });
        *slot = Some((cancel, task));
        epoch
    }

    /// Ends the session and stops connecting. When this returns, the stream is closed.
    pub(super) async fn close(&self) {
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((cancel, task)) = task {
            cancel.cancel();
            if let Err(error) = task.await {
                tracing::error!(vm = %self.vm, %error, "the link's task failed");
                self.ended();
            }
        }
    }

    /// Lets go of every key and button. A guest that can't be told has nobody at its keyboard any more either way, so this
    /// is no reason to fail.
    pub(super) async fn release_input(&self) {
        if let Err(error) = self.hub.release_input(Instant::now() + RELEASE).await {
            tracing::warn!(vm = %self.vm, error = &error as &dyn std::error::Error, "keys may be held down");
        }
    }

    /// Asks the guest's operating system to power off.
    pub(super) async fn shut_down_guest(&self, limit: Duration) -> bool {
        let session = self.session.borrow().clone();
        match session {
            None => false,
            Some(session) => session.shutdown(false, Instant::now() + limit.min(self.try_for)).await.is_ok(),
        }
    }

    async fn keep(&self, first: u64, glance: bool) {
        let mut epoch = first;
        let mut pause = FIRST_PAUSE;
        loop {
            let options = OpenOptions {
                epoch,
                attach: self.attach.clone(),
                glance: glance && epoch == first,
                ..OpenOptions::default()
            };
            // Boxed: the task of a session that is there stays small.
            match Box::pin(connect(&*self.hv, &self.vm, &options, Instant::now() + self.try_for)).await {
                Ok(session) => {
                    pause = FIRST_PAUSE;
                    self.began(&session);
                    let why = self.watch(&session).await;
                    tracing::info!(vm = %self.vm, epoch, why, "guest session ended");
                    self.ended();
                }
                Err(error) => {
                    tracing::warn!(vm = %self.vm, epoch, error = &error as &dyn std::error::Error, "no guest session");
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
            epoch = next_epoch(epoch);
        }
    }

    fn began(&self, session: &Session) {
        let attached = session.attached();
        tracing::info!(
            vm = %self.vm,
            epoch = session.epoch(),
            agent = attached.agent_version,
            skew_micros = attached.clock_skew_micros,
            "guest session"
        );
        for warning in &attached.warnings {
            tracing::warn!(vm = %self.vm, warning, "the guest could not do all of attach");
        }
        self.guest.send_replace(GuestView {
            connected: true,
            epoch: session.epoch(),
            agent_version: attached.agent_version.clone(),
            os: attached.os.clone(),
            clock_skew_micros: attached.clock_skew_micros,
            ip_address: first_address(&attached.ip_addresses),
            ..GuestView::default()
        });
        self.hub.attach(session.clone());
        self.session.send_replace(Some(session.clone()));
    }

    /// Shows heartbeats until the session ends.
    async fn watch(&self, session: &Session) -> String {
        let mut beats = session.heartbeats();
        let beating = async {
            while beats.changed().await.is_ok() {
                if let Some(beat) = beats.borrow_and_update().clone() {
                    self.guest.send_modify(|view| show_beat(view, &beat));
                }
            }
            // No more heartbeats does not end a session; its stream does.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            why = session.closed() => why,
            () = beating => String::new(),
        }
    }

    fn ended(&self) {
        self.hub.detach();
        if let Some(session) = self.session.send_replace(None) {
            session.close();
        }
        self.guest.send_modify(|view| {
            view.connected = false;
            // The row has it for as long as the VM does.
            view.ip_address.clear();
        });
    }
}

impl Actor {
    /// The guest tells its address with each session and heartbeat: after a resume it may have another one.
    pub(super) async fn note_address(&mut self) {
        let now = self.link.guest.borrow().ip_address.clone();
        if now.is_empty() || now == self.row.ip_address {
            return;
        }
        if !self.row.ip_address.is_empty() {
            tracing::info!(vm = %self.row.id, old = self.row.ip_address, new = now, "address changed");
        }
        if let Err(error) = self.write(|row| row.ip_address = now).await {
            tracing::warn!(vm = %self.row.id, error = &error as &dyn std::error::Error, "address not noted");
        }
    }
}

fn show_beat(view: &mut GuestView, beat: &Heartbeat) {
    view.load1 = beat.load1;
    view.memory_available_bytes = beat.memory_available_bytes;
    view.heartbeat = Some(Timestamp::now());
    view.ip_address = first_address(&beat.ip_addresses);
}

/// The address people can use: an IPv4 one where there is any.
pub(in crate::orchestrator) fn first_address(all: &[std::net::IpAddr]) -> String {
    all.iter().find(|ip| ip.is_ipv4()).or(all.first()).map(ToString::to_string).unwrap_or_default()
}

/// Grows with every session of a VM, also over restarts that lost the last number: the clock is its floor.
fn next_epoch(last: u64) -> u64 {
    u64::try_from(Timestamp::now().as_microsecond()).unwrap_or(0).max(last + 1)
}
