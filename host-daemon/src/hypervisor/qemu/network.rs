//! The guest's network: its way out, and the walls around it.
//!
//! `user` is QEMU's own user-mode stack (slirp): no privileges, no helper, one network per VM. Taken as it is it leads to
//! the host's loopback: it maps its gateway address there, and it happily connects a packet that a guest addresses to
//! 127.0.0.1. So the network card does not touch slirp. Each side is given one end of a pair of datagram sockets, one
//! frame a datagram, and slirp's end carries a kernel packet filter that lets through only what may leave. The filter
//! needs no privilege, no process and no copy, and stays when the daemon is gone.
//!
//! ```text
//! virtio-net ── dgram n0 ══ socket pair ══ [filter] dgram n1 ── hub ── slirp ──► sockets of the host
//! ```
//!
//! What passes: ARP; DHCP; DNS to slirp's forwarder (port 53 only, which is the host's own resolver); and IPv4 to any
//! address that is not this network's, loopback, link-local (cloud metadata), multicast or reserved. IPv6 is off.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::Path;

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use uuid::Uuid;

use super::{spawn, walls};
use crate::hypervisor::{HvError, HvResult};
use crate::model::template::{Network, NetworkMode};

/// File descriptors that QEMU finds the network at.
const CARD_FD: i32 = 5;
const STACK_FD: i32 = 6;

/// Slirp's addresses: the network, its gateway and DHCP server, its DNS forwarder.
const SUBNET: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 0);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);

/// The hardware address of a VM's network card: locally administered, and as unique as its uid. A fork still has its
/// parent's in its memory; the agent gives it this one.
#[must_use]
pub fn mac_address(uid: Uuid) -> String {
    // The last bytes are random in version 4 and in version 7 alike.
    let tail = &uid.as_bytes()[11..];
    format!("02:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", tail[0], tail[1], tail[2], tail[3], tail[4])
}

/// Open ends of a network, to be inherited by QEMU.
pub(crate) type Ends = Vec<(OwnedFd, i32)>;

/// Checks that this host has such a network.
pub(crate) fn check(network: &Network, helper: &Path) -> HvResult<()> {
    let Network::Bridge(name) = network else { return Ok(()) };
    let bad = |why| Err(HvError::BadSetting { field: "network.bridge", why });
    // 15 bytes is the longest name of an interface; the name must not lead elsewhere.
    let legal = (1..=15).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && name.as_str() != "."
        && name.as_str() != "..";
    if !legal || !Path::new("/sys/class/net").join(name).join("bridge").is_dir() {
        return bad(format!("{name:?} is no bridge of this host"));
    }
    if !helper.is_file() {
        return bad(format!("{} is needed to join a bridge and isn't there", helper.display()));
    }
    Ok(())
}

/// Opens what a VM's network card is connected to.
pub(crate) async fn open(network: &Network, helper: &Path) -> HvResult<Ends> {
    let failed = |source| HvError::Io { context: "open the vm's network".to_owned(), source };
    match network {
        Network::None => Ok(Vec::new()),
        Network::User => {
            let (card, stack) = Socket::pair(Domain::UNIX, Type::DGRAM, None).map_err(failed)?;
            stack
                .attach_filter(&walls::filter(&walls::Addresses {
                    subnet: SUBNET,
                    gateway: GATEWAY,
                    resolver: RESOLVER,
                }))
                .map_err(failed)?;
            Ok(vec![(card.into(), CARD_FD), (stack.into(), STACK_FD)])
        }
        Network::Bridge(name) => Ok(vec![(spawn::bridge_tap(helper, name).await?, CARD_FD)]),
    }
}

/// QEMU's side of it, as `-netdev` and `-device` arguments.
pub(crate) fn arguments(mode: NetworkMode, mac: &str) -> Vec<(&'static str, Value)> {
    let socket = |id, fd: i32| {
        ("-netdev", json!({"type": "dgram", "id": id, "local": {"type": "fd", "str": fd.to_string()}}))
    };
    let port = |id, netdev| ("-netdev", json!({"type": "hubport", "id": id, "hubid": 0, "netdev": netdev}));
    let mut all = match mode {
        NetworkMode::None => return Vec::new(),
        NetworkMode::User => vec![
            socket("n0", CARD_FD),
            socket("n1", STACK_FD),
            (
                "-netdev",
                json!({
                    "type": "user", "id": "u0", "ipv6": false, "net": format!("{SUBNET}/24"),
                    "host": GATEWAY.to_string(), "dns": RESOLVER.to_string(),
                }),
            ),
            port("h0", "n1"),
            port("h1", "u0"),
        ],
        NetworkMode::Bridge => {
            vec![("-netdev", json!({"type": "tap", "id": "n0", "fd": CARD_FD.to_string()}))]
        }
    };
    // No boot ROM: nothing here boots from a network, and looking for it takes seconds under emulation.
    // The agent gives each fork an address of its own; announcing the template's first helps nobody.
    let card = json!({
        "driver": "virtio-net-pci", "netdev": "n0", "mac": mac, "romfile": "", "guest_announce": false,
    });
    all.push(("-device", card));
    all
}
