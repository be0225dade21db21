//! Simulated guests: a small drawn desktop behind the real protocol, for a host that has no VMs.
//!
//! ```text
//!  host's stream ── session (preface, HTTP/2) ── Services ─┬─ DisplayService: the real one, on a drawn Screen and Input
//!                                                          ├─ DesktopService: the real one, on two windows and a clipboard
//!                                                          ├─ SupervisorService: a clock and a name that are made up
//!                                                          └─ ProcessService: a dozen programs and a few files
//!                                  Computer: State { Memory, Disk } ── Board ──► whoever runs the guest
//! ```
//!
//! A guest is what it remembers: [`State`], a few hundred bytes that can be saved, copied and taken up again. Pixels are
//! drawn when somebody looks and kept nowhere, and threads are borrowed, so that ten thousand guests fit into one
//! process. Nothing in a guest reaches the machine that it runs on: its programs, files, clock and addresses are its own.
//!
//! The desktop has a window with a text field, which has the focus after the boot and echoes what is typed, and one with
//! a button that counts. Ctrl with A, C, X and V do in the field what they do everywhere. The program `desktop` prints what is on it.

mod computer;
mod desk;
mod desktop;
mod draw;
mod files;
mod input;
mod programs;
mod screen;
mod state;
mod supervisor;

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use futures_util::future::BoxFuture;
use http::{Request, Response};
use hvkube_proto::guest::v1::desktop_service_server::{DesktopServiceServer, SERVICE_NAME as DESKTOP};
use hvkube_proto::guest::v1::display_service_server::{DisplayServiceServer, SERVICE_NAME as DISPLAY};
use hvkube_proto::guest::v1::process_service_server::{ProcessServiceServer, SERVICE_NAME as PROCESS};
use hvkube_proto::guest::v1::supervisor_service_server::{
    SERVICE_NAME as SUPERVISOR, SupervisorServiceServer,
};
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tower::Service;

use crate::display::{DeskSession, Desktop, DisplaySession, InputThread};
use crate::platform::keysym;
use crate::session::{self, HandshakeError};
use crate::transport::Stream;

pub use desktop::{Layout, MAX_TEXT};
pub use files::MAX_DISK;
pub use state::{Clip, Disk, File, Memory, State};

use computer::Computer;
use input::Mouse;
use programs::Programs;
use supervisor::Supervisor;

/// What a guest's machine is made of.
#[derive(Clone, Copy, Debug)]
pub struct Hardware {
    /// Size of the screen in pixels.
    pub screen: (u32, u32),
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Address of the only network interface, if there is one.
    pub address: Option<IpAddr>,
    /// When it was switched on.
    pub booted: Instant,
}

/// What a guest tells its machine. Called with the guest's lock held, so that calls come in the order of what they tell:
/// they must not block, and not call the guest.
pub trait Board: Send + Sync + 'static {
    /// What the guest remembers is no longer what it was. Motion of the pointer alone is not told.
    fn changed(&self, state: &State);

    /// The guest's operating system switches the machine off, or restarts it.
    fn power(&self, reboot: bool);
}

/// A guest that runs. Dropping it, with all of its sessions, ends it.
#[derive(Clone)]
pub struct Guest {
    computer: Arc<Computer>,
    desktop: Desktop,
}

impl Guest {
    /// Goes on from a state.
    #[must_use]
    pub fn new(hardware: Hardware, state: State, board: Arc<dyn Board>) -> Self {
        let computer = Arc::new(Computer::new(hardware, state, board));
        let desktop = Desktop {
            screen: Arc::clone(&computer) as _,
            input: InputThread::borrowed(Mouse::new(Arc::clone(&computer))),
            desk: Arc::clone(&computer) as _,
            gone: CancellationToken::new(),
        };
        Self { computer, desktop }
    }

    /// Serves one session on a stream to the host, from the preface to the stream's end.
    ///
    /// # Errors
    /// When the host does not speak this protocol or goes away before the session begins.
    pub async fn serve(&self, mut stream: impl Stream + 'static) -> Result<(), HandshakeError> {
        session::greet(&mut stream, [0; 32]).await?;
        if let Err(error) = session::serve(stream, Services::new(self)).await {
            tracing::debug!(%error, "session broke");
        }
        Ok(())
    }

    /// What it remembers now.
    #[must_use]
    pub fn state(&self) -> State {
        self.computer.lock().state.clone()
    }

    /// Stands still for good and tells what it remembers: nothing changes it after this returned.
    #[must_use]
    pub fn freeze(&self) -> State {
        let mut inner = self.computer.lock();
        inner.frozen = true;
        inner.state.clone()
    }

    /// Size of the screen in pixels.
    #[must_use]
    pub fn screen(&self) -> (u32, u32) {
        self.computer.lock().layout.screen
    }

    /// All pixels of the screen: rows top to bottom, 4 bytes each (blue, green, red, unused), without the cursor.
    #[must_use]
    pub fn picture(&self) -> Vec<u8> {
        let inner = self.computer.lock();
        draw::picture(&inner.layout, &inner.state.memory)
    }

    /// Puts the pointer somewhere, as the machine's own mouse does.
    pub fn move_to(&self, x: i32, y: i32) {
        self.computer.move_to(x, y);
    }

    /// Presses or releases the left button where the pointer is.
    pub fn button(&self, down: bool) {
        self.computer.button(down);
    }

    /// Presses or releases a key; one that there is not does nothing.
    pub fn key(&self, name: &str, down: bool) {
        let _known = self.computer.key(name, down);
    }

    /// Whether there is a key of this name.
    #[must_use]
    pub fn has_key(name: &str) -> bool {
        keysym::by_name(name).is_some()
    }
}

/// All services of one session, without a router: there are four, and there may be ten thousand sessions.
#[derive(Clone)]
struct Services {
    desktop: DesktopServiceServer<DeskSession>,
    display: DisplayServiceServer<DisplaySession>,
    process: ProcessServiceServer<Programs>,
    supervisor: SupervisorServiceServer<Supervisor>,
}

impl Services {
    fn new(guest: &Guest) -> Self {
        Self {
            desktop: DesktopServiceServer::new(DeskSession::new(&guest.desktop)),
            display: DisplayServiceServer::new(DisplaySession::new(guest.desktop.clone())),
            process: ProcessServiceServer::new(Programs::new(Arc::clone(&guest.computer))),
            supervisor: SupervisorServiceServer::new(Supervisor::new(Arc::clone(&guest.computer))),
        }
    }
}

impl Service<Request<Incoming>> for Services {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let service = request.uri().path().split('/').nth(1).unwrap_or_default();
        match service {
            DESKTOP => self.desktop.call(request),
            DISPLAY => self.display.call(request),
            PROCESS => self.process.call(request),
            SUPERVISOR => self.supervisor.call(request),
            _ => Box::pin(async { Ok(Status::unimplemented("no such service").into_http()) }),
        }
    }
}
