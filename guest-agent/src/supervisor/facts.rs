//! What the guest can say about itself, read from `/proc` and `/etc`. A fact that can't be read is left empty: none of them
//! is worth a session.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use hvkube_proto::guest::v1 as pb;

use crate::platform::machine;

const MAX_STAMP: u64 = 64 << 10;
const MAX_OS: usize = 256;

/// The golden image's stamp, empty where there is none or it is over the protocol's bound.
#[must_use]
pub fn image_stamp(path: &Path) -> String {
    match fs::metadata(path) {
        Ok(meta) if meta.len() <= MAX_STAMP => fs::read_to_string(path).unwrap_or_default(),
        _ => String::new(),
    }
}

/// `PRETTY_NAME` of os-release.
#[must_use]
pub fn os_name() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=")).unwrap_or(std::env::consts::OS);
    let mut name = name.trim_matches('"').to_owned();
    name.truncate(name.floor_char_boundary(MAX_OS));
    name
}

/// Random per boot.
#[must_use]
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// The present time as it goes over the wire.
#[must_use]
pub fn now() -> prost_types::Timestamp {
    SystemTime::now().into()
}

/// One beat.
#[must_use]
pub fn heartbeat(sequence: u64, desktop_ready: bool) -> pb::HeartbeatResponse {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    pb::HeartbeatResponse {
        sequence,
        guest_time: Some(now()),
        load1: first_number(&fs::read_to_string("/proc/loadavg").unwrap_or_default()),
        memory_total_bytes: memory(&meminfo, "MemTotal:"),
        memory_available_bytes: memory(&meminfo, "MemAvailable:"),
        desktop_ready,
        ip_addresses: machine::ip_addresses(),
        uptime: Duration::try_from_secs_f64(first_number(
            &fs::read_to_string("/proc/uptime").unwrap_or_default(),
        ))
        .ok()
        .and_then(|d| d.try_into().ok()),
    }
}

fn first_number(text: &str) -> f64 {
    text.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0.0)
}

/// A line of meminfo, `MemTotal:  509876 kB`, in bytes.
fn memory(meminfo: &str, key: &str) -> u64 {
    let line = meminfo.lines().find_map(|l| l.strip_prefix(key)).unwrap_or("");
    line.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_formats() {
        assert_eq!(memory("MemTotal:        509876 kB\nMemFree: 1 kB", "MemTotal:"), 509_876 * 1024);
        assert_eq!(memory("", "MemTotal:"), 0);
        assert!((first_number("0.42 0.10 0.01 1/234 567") - 0.42).abs() < f64::EPSILON);
        let beat = heartbeat(3, true);
        assert!(beat.memory_total_bytes > beat.memory_available_bytes && beat.memory_available_bytes > 0);
        assert!(beat.uptime.is_some() && beat.sequence == 3);
    }
}
