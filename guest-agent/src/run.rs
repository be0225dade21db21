//! The three ways to run the agent: supervisor, worker, and both in one.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use hvkube_proto::guest::v1::desktop_service_server::DesktopServiceServer;
use hvkube_proto::guest::v1::display_service_server::DisplayServiceServer;
use hvkube_proto::guest::v1::process_service_server::ProcessServiceServer;
use hvkube_proto::guest::v1::supervisor_service_server::SupervisorServiceServer;

use crate::config::{Config, read_secret};
use crate::display::{DeskSession, Desktop, DisplayError, DisplaySession};
use crate::platform::{X11, display_is_up};
use crate::process::{Home, LocalProcesses};
use crate::supervisor::passwd::User;
use crate::supervisor::worker::{Control, Workers, become_user};
use crate::supervisor::{Desktop as DesktopRoute, Routed, RoutedProcesses, Routes, Supervisor};
use crate::transport::Tcp;
use crate::{session, transport};

/// How often to look for a display that isn't there yet.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often to look for a way to the host: at boot, devices come up after the agent.
const TRANSPORT_EVERY: Duration = Duration::from_millis(100);
/// When to say that there is none.
const TRANSPORT_PATIENCE: Duration = Duration::from_secs(10);

fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // A thread that waits costs nothing; to start one at a session's beginning does.
        .thread_keep_alive(Duration::from_secs(24 * 3600))
        .build()
        .context("cannot start a runtime")?;
    runtime.block_on(work)
}

/// Serves the host as root; the desktop's calls go to a worker that is kept running.
///
/// # Errors
/// When the transport is lost.
pub fn supervisor(config: Config) -> anyhow::Result<()> {
    block_on(async move {
        let started = Instant::now();
        let mut told = false;
        let mut transport = loop {
            match transport::detect(&config) {
                Ok(transport) => break transport,
                Err(error) if !told && started.elapsed() > TRANSPORT_PATIENCE => {
                    told = true;
                    tracing::warn!("{:#}", anyhow::Error::from(error));
                }
                Err(_) => {}
            }
            tokio::time::sleep(TRANSPORT_EVERY).await;
        };
        let workers = Arc::new(Workers::start(config.clone()));
        let ready = Arc::clone(&workers);
        let supervisor = Supervisor::new(true, &config, move || ready.ready());
        let root = LocalProcesses::new(root_home(), true);
        let begin = |_epoch| {
            let desktop = DesktopRoute::new(workers.clone());
            let processes = RoutedProcesses::new(root.clone(), desktop.clone());
            let local = Routes::new(SupervisorServiceServer::new(supervisor.clone()))
                .add_service(ProcessServiceServer::new(processes));
            std::future::ready(Routed::new(local, Some(desktop)))
        };
        session::run(&mut *transport, begin).await.context("the way to the host is gone")?;
        Ok(())
    })
}

fn root_home() -> Home {
    let env = [
        ("HOME", "/root"),
        ("USER", "root"),
        ("LOGNAME", "root"),
        ("SHELL", "/bin/sh"),
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("LANG", "C.UTF-8"),
    ];
    Home { dir: "/root".into(), env: env.map(|(k, v)| (k.into(), v.into())).into() }
}

/// Serves the desktop's calls to the supervisor, as `user`.
///
/// # Errors
/// When there is no such user, or the display is not usable or goes away.
pub fn worker(user: &str, display: &str) -> anyhow::Result<()> {
    let user = User::by_name(user)?;
    // The supervisor may be spared when memory runs out; the desktop's programs, which inherit this, must not be.
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "0") {
        tracing::debug!(%error, "oom score not reset");
    }
    become_user(&user).with_context(|| format!("cannot become {}", user.name))?;
    block_on(async move {
        let mut control = Control::from_stdin().context("standard input is not the supervisor's socket")?;
        let desktop = X11::desktop(display)?;
        let processes = LocalProcesses::new(Home::of_this_process(), false);
        control.ready().await.context("the supervisor is gone")?;
        loop {
            let stream = tokio::select! {
                stream = control.next() => stream.context("the supervisor's socket broke")?,
                () = desktop.gone.cancelled() => bail!("the display is gone"),
            };
            let Some(stream) = stream else { return Ok(()) };
            let routes = desktop_routes(&desktop, &processes);
            tokio::spawn(async move {
                if let Err(error) = session::serve(stream, Routed::new(routes, None)).await {
                    tracing::debug!(%error, "session broke");
                }
            });
        }
    })
}

fn desktop_routes(desktop: &Desktop, processes: &LocalProcesses) -> Routes {
    Routes::new(DisplayServiceServer::new(DisplaySession::new(desktop.clone())))
        .add_service(DesktopServiceServer::new(DeskSession::new(desktop)))
        .add_service(ProcessServiceServer::new(processes.clone()))
}

/// Serves a display that is not in a VM to a host on TCP; nothing of the machine is changed.
///
/// # Errors
/// When the arguments make no sense, or the display is not usable or goes away.
pub fn standalone(connect: &str, secret_file: &Path, display: &str) -> anyhow::Result<()> {
    let Some(address) = connect.strip_prefix("tcp://") else {
        bail!("--connect: {connect:?} is not of the form tcp://HOST:PORT");
    };
    let mut transport = Tcp::new(address.to_owned(), read_secret(secret_file)?);
    block_on(async move {
        let desktop = wait_for_display(display).await?;
        let mut home = Home::of_this_process();
        home.env.retain(|(key, _)| key != "DISPLAY");
        home.env.push(("DISPLAY".into(), display.into()));
        let processes = LocalProcesses::new(home, false);
        let gone = desktop.gone.clone();
        let supervisor = Supervisor::new(false, &Config::default(), || true);
        let begin = |_epoch| {
            let routes = desktop_routes(&desktop, &processes)
                .add_service(SupervisorServiceServer::new(supervisor.clone()));
            std::future::ready(Routed::new(routes, None))
        };
        tokio::select! {
            ended = session::run(&mut transport, begin) => ended.map(|_| ()).context("the way to the host is gone"),
            () = gone.cancelled() => bail!("the display is gone"),
        }
    })
}

async fn wait_for_display(display: &str) -> Result<Desktop, DisplayError> {
    while !display_is_up(display) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    X11::desktop(display)
}
