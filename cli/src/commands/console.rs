//! `hvkube vm console`: a viewer of VNC for a desktop.
//!
//! The viewer connects to a loopback port of this program, which passes its bytes to the daemon inside the ordinary API.
//! Anyone on this computer could connect to that port, so a connection counts only when it was made by this user; the
//! kernel says whose it is.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::process::{ExitCode, Stdio};

use clap::Args;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

use crate::context::Context;
use crate::report::{Failure, Outcome};

#[derive(Debug, Args)]
pub(crate) struct Console {
    /// VM (id or name) or leases/ID
    name: String,
    /// Only look: keys and pointer of the viewer do nothing
    #[arg(long)]
    view_only: bool,
    /// Program to look with [default: the first of vncviewer, xtigervncviewer, gvncviewer, remote-viewer that is there]
    #[arg(long, value_name = "PROGRAM", conflicts_with = "no_viewer")]
    viewer: Option<String>,
    /// Start no viewer: print the address on standard output, and serve the one that connects
    #[arg(long)]
    no_viewer: bool,
    /// Loopback port to listen on [default: any that is free]
    #[arg(long, value_name = "PORT", default_value_t = 0, hide_default_value = true)]
    port: u16,
}

/// How a viewer wants the address of a port.
type Address = fn(u16) -> String;

/// In the order of preference.
const VIEWERS: &[(&str, Address)] = &[
    ("vncviewer", double_colon),
    ("xtigervncviewer", double_colon),
    ("gvncviewer", display),
    ("remote-viewer", url),
];

fn double_colon(port: u16) -> String {
    format!("127.0.0.1::{port}")
}

/// Of the display whose port it is: gvncviewer adds 5900, also to a negative one.
fn display(port: u16) -> String {
    format!("127.0.0.1:{}", i32::from(port) - 5900)
}

fn url(port: u16) -> String {
    format!("vnc://127.0.0.1:{port}")
}

pub(crate) async fn run(context: &Context, args: Console) -> Outcome {
    let viewer = if args.no_viewer { None } else { Some(choose(args.viewer.as_deref())?) };
    let target = context.client().await?.target(&args.name);
    // Refused before anything is started, if it is.
    let console = target.open_console(args.view_only).await?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, args.port))
        .await
        .map_err(|err| Failure::io(&format!("listen on 127.0.0.1:{}", args.port), &err))?;
    let port = listener.local_addr().map_err(|err| Failure::io("listen", &err))?.port();
    let mut started = match viewer {
        Some((program, address)) => Some(start(&program, &address(port))?),
        None => {
            crate::output::write(&format!("127.0.0.1:{port}\n"))?;
            None
        }
    };
    let stream = tokio::select! {
        stream = accept(context, &listener) => stream?,
        // A viewer that ends before it has connected has said why.
        status = ended(&mut started) => {
            return Err(Failure::Local(format!("the viewer ended without connecting: {status}")));
        }
    };
    drop(listener);
    context.note(format_args!("connected to {}", target.name()));
    // The ticket of above may be older than a minute when nobody was in a hurry.
    let console = if args.no_viewer { target.open_console(args.view_only).await? } else { console };
    console.bridge(stream).await?;
    Ok(ExitCode::SUCCESS)
}

fn choose(wanted: Option<&str>) -> Result<(String, Address), Failure> {
    let there = |program: &str| {
        program.contains('/')
            || std::env::var_os("PATH")
                .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).is_file()))
    };
    let of = |program: &str| {
        let name = program.rsplit('/').next().unwrap_or(program);
        VIEWERS
            .iter()
            .find(|(known, _)| *known == name)
            .map_or(double_colon as Address, |(_, address)| *address)
    };
    match wanted {
        Some(program) if there(program) => Ok((program.to_owned(), of(program))),
        Some(program) => Err(Failure::Usage(format!("--viewer {program}: there is no such program"))),
        None => match VIEWERS.iter().find(|(program, _)| there(program)) {
            Some((program, address)) => Ok(((*program).to_owned(), *address)),
            None => Err(Failure::Usage(
                "no viewer of VNC is installed: install the package tigervnc-viewer, or use --no-viewer and one of \
                 your own"
                    .to_owned(),
            )),
        },
    }
}

fn start(program: &str, address: &str) -> Result<Child, Failure> {
    let mut command = Command::new(program);
    // What it has to say is for people; standard output is not its own.
    command.arg(address).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    command.spawn().map_err(|err| Failure::io(&format!("start {program}"), &err))
}

async fn ended(viewer: &mut Option<Child>) -> String {
    match viewer {
        Some(viewer) => viewer.wait().await.map_or_else(|err| err.to_string(), |status| status.to_string()),
        None => std::future::pending().await,
    }
}

/// The first connection of this user.
async fn accept(context: &Context, listener: &TcpListener) -> Result<TcpStream, Failure> {
    loop {
        let (stream, peer) =
            listener.accept().await.map_err(|err| Failure::io("wait for the viewer", &err))?;
        let here = stream.local_addr().map_err(|err| Failure::io("wait for the viewer", &err))?;
        if is_ours(peer, here)? {
            let _ = stream.set_nodelay(true);
            return Ok(stream);
        }
        context.note(format_args!("turned away a connection of another user from {peer}"));
    }
}

/// Whether the socket at `peer` that is connected to `here` belongs to this user.
#[cfg(target_os = "linux")]
fn is_ours(peer: SocketAddr, here: SocketAddr) -> Result<bool, Failure> {
    let table =
        std::fs::read_to_string("/proc/net/tcp").map_err(|err| Failure::io("read /proc/net/tcp", &err))?;
    let (SocketAddr::V4(peer), SocketAddr::V4(here)) = (peer, here) else { return Ok(false) };
    Ok(owner(&table, peer, here) == Some(rustix::process::geteuid().as_raw()))
}

#[cfg(not(target_os = "linux"))]
fn is_ours(_: SocketAddr, _: SocketAddr) -> Result<bool, Failure> {
    Err(Failure::Local(
        "a console needs Linux on the viewer's side, which tells whose a connection is".to_owned(),
    ))
}

/// Of `enum` in the kernel's tcp_states.h.
#[cfg(target_os = "linux")]
const ESTABLISHED: &str = "01";

/// The user of a connection, in the kernel's table: addresses are hexadecimal, bytes in the order of the machine. Only of
/// one that is established and has an inode: a socket whose program is gone is nobody's, and the kernel shows it as root's.
#[cfg(target_os = "linux")]
fn owner(table: &str, local: SocketAddrV4, remote: SocketAddrV4) -> Option<u32> {
    let text = |address: SocketAddrV4| {
        format!("{:08X}:{:04X}", u32::from_ne_bytes(address.ip().octets()), address.port())
    };
    let (local, remote) = (text(local), text(remote));
    table.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let ours = words.next()? == local && words.next()? == remote;
        let established = words.next()? == ESTABLISHED;
        // queues, timer, retransmissions, user; timeout, inode
        let (user, inode) = (words.nth(3)?, words.nth(1)?);
        (ours && established && inode != "0").then(|| user.parse().ok())?
    })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_whose_a_connection_is() {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listens");
        let here = listener.local_addr().expect("an address");
        let ours = std::net::TcpStream::connect(here).expect("connects");
        let peer = ours.local_addr().expect("an address");
        assert!(is_ours(peer, here).expect("a table"));
        let (SocketAddr::V4(peer), SocketAddr::V4(here)) = (peer, here) else { panic!("{peer}") };
        let text = |a: SocketAddrV4| format!("{:08X}:{:04X}", u32::from_ne_bytes(a.ip().octets()), a.port());
        let table = |state: &str, user: u32, inode: u32| {
            format!(
                "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                 7: {} {} {state} 00000000:00000000 00:00000000 00000000  {user}        0 {inode} 1",
                text(peer),
                text(here)
            )
        };
        let foreign = table("01", 4711, 9);
        assert_eq!(owner(&foreign, peer, here), Some(4711));
        assert_eq!(owner(&foreign, here, peer), None);
        // Another user's program has gone and left its socket, which the kernel shows as root's.
        for (state, inode) in [("04", 0), ("05", 0), ("01", 0), ("08", 9)] {
            assert_eq!(owner(&table(state, 0, inode), peer, here), None, "{state} {inode}");
        }
        assert_eq!(owner(&table("01", 0, 9), peer, here), Some(0));
    }

    #[test]
    fn viewers_get_the_address_in_their_own_way() {
        assert_eq!(double_colon(40_000), "127.0.0.1::40000");
        assert_eq!(display(40_000), "127.0.0.1:34100");
        assert_eq!(url(40_000), "vnc://127.0.0.1:40000");
        let missing = choose(Some("hvkube-no-such-viewer"));
        assert!(
            matches!(missing, Err(Failure::Usage(why)) if why.contains("--viewer hvkube-no-such-viewer"))
        );
        assert_eq!(choose(Some("/bin/sh")).ok().map(|(program, _)| program).as_deref(), Some("/bin/sh"));
    }
}
