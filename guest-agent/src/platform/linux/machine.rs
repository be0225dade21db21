//! The machine itself: clock, names, address and random pool. Plain system calls and small files, no programs, because it
//! is all on the path from a resume to a usable desktop. Every step first looks whether there is anything to do.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use prost_types::Timestamp;
use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use super::ioctl;

/// Clocks that differ by less are left alone: a step is an event of its own for programs.
const CLOCK_TOLERANCE_MICROS: u64 = 50_000;
const MAX_ADDRESSES: usize = 16;

/// Guest clock minus `host`, in microseconds.
#[must_use]
pub fn clock_skew_micros(host: &Timestamp) -> i64 {
    let guest = clock_gettime(ClockId::Realtime);
    (guest.tv_sec - host.seconds) * 1_000_000 + (guest.tv_nsec - i64::from(host.nanos)) / 1000
}

/// Whether a skew is large enough to act on.
#[must_use]
pub fn is_off(skew_micros: i64) -> bool {
    skew_micros.unsigned_abs() > CLOCK_TOLERANCE_MICROS
}

/// Sets the clock to `host` when `skew_micros` is large.
///
/// # Errors
/// When this process may not.
pub fn step_clock(host: &Timestamp, skew_micros: i64) -> io::Result<()> {
    if !is_off(skew_micros) {
        return Ok(());
    }
    let time = Timespec { tv_sec: host.seconds, tv_nsec: i64::from(host.nanos) };
    clock_settime(ClockId::Realtime, time)?;
    tracing::debug!(skew_micros, "clock set to the host's");
    Ok(())
}

/// Overwrites in place: to cut a file to nothing first makes file systems free and allocate its blocks at once, which is
/// many times the work.
fn write_if_different(path: &Path, text: &str) -> io::Result<()> {
    let old = fs::read(path).unwrap_or_default();
    if old == text.as_bytes() {
        return Ok(());
    }
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    file.write_all(text.as_bytes())?;
    if text.len() < old.len() { file.set_len(text.len() as u64) } else { Ok(()) }
}

/// Names the machine.
///
/// # Errors
/// When this process may not.
pub fn set_hostname(name: &str) -> io::Result<()> {
    if rustix::system::uname().nodename().to_bytes() != name.as_bytes() {
        rustix::system::sethostname(name.as_bytes())?;
    }
    Ok(())
}

/// Names the machine in its files: for the next boot, and for programs that look their own host up.
///
/// # Errors
/// When a file can't be written.
pub fn record_hostname(name: &str) -> io::Result<()> {
    write_if_different(Path::new("/etc/hostname"), &format!("{name}\n"))?;
    let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
    write_if_different(Path::new("/etc/hosts"), &hosts_with(&hosts, name))
}

/// `hosts` with one line for the machine's own name, as Debian's resolver set-up expects it.
fn hosts_with(hosts: &str, name: &str) -> String {
    let mut out = String::new();
    let mut named = false;
    for line in hosts.lines() {
        if line.split_whitespace().next() == Some("127.0.1.1") {
            if named {
                continue;
            }
            named = true;
            out += &format!("127.0.1.1\t{name}\n");
        } else {
            out += line;
            out += "\n";
        }
    }
    if !named {
        out += &format!("127.0.1.1\t{name}\n");
    }
    out
}

/// Gives the machine its id, for systemd and for a D-Bus that keeps a file of its own.
///
/// # Errors
/// When a file can't be written.
pub fn set_machine_id(id: &str) -> io::Result<()> {
    let text = format!("{id}\n");
    write_if_different(Path::new("/etc/machine-id"), &text)?;
    let dbus = Path::new("/var/lib/dbus/machine-id");
    match fs::symlink_metadata(dbus) {
        Ok(meta) if meta.is_file() => write_if_different(dbus, &text),
        _ => Ok(()),
    }
}

/// The first network interface with a device behind it. Looked up once: every fork of a machine has the same ones.
fn first_interface() -> Option<(String, PathBuf)> {
    static FOUND: OnceLock<(String, PathBuf)> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return Some(found.clone());
    }
    let found = look_for_interface()?;
    Some(FOUND.get_or_init(|| found).clone())
}

fn look_for_interface() -> Option<(String, PathBuf)> {
    let mut names: Vec<PathBuf> = fs::read_dir("/sys/class/net").ok()?.flatten().map(|e| e.path()).collect();
    names.sort();
    let path = names.into_iter().find(|p| p.join("device").exists())?;
    Some((path.file_name()?.to_str()?.to_owned(), path))
}

/// Gives the first network interface its address; tells whether it is a new one, for which the network's lease is to be
/// renewed.
///
/// # Errors
/// When there is no interface or its driver refuses.
pub fn set_mac_address(mac: &[u8]) -> io::Result<bool> {
    let mac: [u8; 6] = mac.try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
    let (name, path) =
        first_interface().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no network interface"))?;
    if fs::read_to_string(path.join("address")).is_ok_and(|old| old.trim() == format_mac(mac)) {
        return Ok(false);
    }
    ioctl::set_mac_address(&name, mac)?;
    tracing::debug!(interface = name, mac = format_mac(mac), "network address set");
    Ok(true)
}

/// Looks up what [`set_mac_address`] will need, while nobody waits for it.
pub fn warm_up() {
    first_interface();
}

/// Writes to the disks what is only in memory yet.
pub fn flush_disks() {
    rustix::fs::sync();
}

/// Has the DHCP client renew its lease: a signal to the one with this pid file, or a restart of systemd's.
///
/// # Errors
/// When it is not there.
pub fn renew_network(dhcp_pid_file: Option<&Path>) -> io::Result<()> {
    let Some(file) = dhcp_pid_file else {
        return spawn(Command::new("systemctl").args([
            "--no-block",
            "try-restart",
            "systemd-networkd.service",
        ]));
    };
    let pid = fs::read_to_string(file)?.trim().parse().ok().and_then(Pid::from_raw);
    let pid =
        pid.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no pid in the DHCP client's file"))?;
    Ok(kill_process(pid, Signal::USR1)?)
}

fn format_mac(mac: [u8; 6]) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}

/// Stirs `seed` into the random pool as good entropy and has the generators reseed from it now, not in five minutes.
///
/// # Errors
/// When this process may not.
pub fn add_entropy(seed: &[u8]) -> io::Result<()> {
    let seed: [u8; 32] = seed.try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
    let random = fs::OpenOptions::new().write(true).open("/dev/random")?;
    ioctl::credit_entropy(&random, seed)?;
    ioctl::reseed(&random)
}

/// Addresses of all interfaces, loopback and link-local ones left out.
#[must_use]
pub fn ip_addresses() -> Vec<String> {
    let mut out: Vec<String> = ioctl::ipv4_addresses()
        .unwrap_or_default()
        .into_iter()
        .filter(|(_, ip)| !ip.is_loopback() && !ip.is_link_local())
        .map(|(_, ip)| ip.to_string())
        .collect();
    out.extend(ipv6_global(&fs::read_to_string("/proc/net/if_inet6").unwrap_or_default()));
    out.truncate(MAX_ADDRESSES);
    out
}

/// Lines of if_inet6 with global scope: `fd00...01 02 40 00 80 eth0`.
fn ipv6_global(table: &str) -> Vec<String> {
    let global = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let bits = u128::from_str_radix(fields.first()?, 16).ok()?;
        (fields.get(3) == Some(&"00")).then(|| std::net::Ipv6Addr::from_bits(bits).to_string())
    };
    table.lines().filter_map(global).collect()
}

/// Begins a shutdown.
///
/// # Errors
/// When the init system's program can't be started.
pub fn shutdown(reboot: bool) -> io::Result<()> {
    spawn(Command::new("systemctl").args(["--no-block", if reboot { "reboot" } else { "poweroff" }]))
}

/// Runs a program that nobody waits for, and reaps it.
fn spawn(command: &mut Command) -> io::Result<()> {
    let mut child = command.spawn()?;
    std::thread::Builder::new().name("reaper".into()).spawn(move || child.wait())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_get_one_line_for_the_name() {
        let old = "127.0.0.1\tlocalhost\n127.0.1.1 template template.local\n127.0.1.1 twice\n::1 ip6\n";
        assert_eq!(hosts_with(old, "vm-1"), "127.0.0.1\tlocalhost\n127.0.1.1\tvm-1\n::1 ip6\n");
        assert_eq!(hosts_with("127.0.0.1 localhost", "vm-1"), "127.0.0.1 localhost\n127.0.1.1\tvm-1\n");
        assert_eq!(hosts_with(&hosts_with("", "a"), "a"), hosts_with("", "a"), "idempotent");
    }

    #[test]
    fn addresses_without_loopback() {
        let all = ioctl::ipv4_addresses().expect("asked");
        assert!(all.contains(&("lo".to_owned(), std::net::Ipv4Addr::LOCALHOST)), "{all:?}");
        assert!(!ip_addresses().iter().any(|ip| ip.starts_with("127.")));
        let table = "00000000000000000000000000000001 01 80 10 80       lo\nfec00000000000005054000000123456 02 40 00 80     eth0\nfe800000000000005054000000123456 02 40 20 80     eth0\n";
        assert_eq!(ipv6_global(table), ["fec0::5054:0:12:3456"]);
    }

    #[test]
    fn skew_is_guest_minus_host() {
        let now = clock_gettime(ClockId::Realtime);
        let host = Timestamp { seconds: now.tv_sec - 10, nanos: 0 };
        let skew = clock_skew_micros(&host);
        assert!((10_000_000..20_000_000).contains(&skew), "{skew}");
        assert!(is_off(skew) && is_off(-50_001) && !is_off(50_000));
    }
}
