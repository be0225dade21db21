//! Numbers, times and names as people read them.

use std::time::Duration;

use hvkube_sdk::{ProtoDuration, Timestamp};

/// `VM_STATE_RUNNING` with its prefix gone, as `running`; the rest of the underscores become dashes.
pub(crate) fn enum_name(full: &str) -> String {
    const PREFIXES: [&str; 9] = [
        "EVENT_KIND_",
        "AGENT_STATUS_",
        "VM_STATE_",
        "VM_AVAILABILITY_",
        "TEMPLATE_STATE_",
        "LEASE_STATE_",
        "CLONE_METHOD_",
        "NETWORK_MODE_",
        "READINESS_CHECK_KIND_",
    ];
    let short = PREFIXES.iter().find_map(|prefix| full.strip_prefix(prefix)).unwrap_or(full);
    if short == "UNSPECIFIED" { String::new() } else { short.to_ascii_lowercase().replace('_', "-") }
}

/// The id in a resource name.
pub(crate) fn short(name: &str) -> String {
    name.rsplit('/').next().unwrap_or_default().to_owned()
}

/// The two largest units: `1h5m`, `3m20s`, `4.2s`, `120ms`.
pub(crate) fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    let pair = |large: u64, unit: &str, small: u64, small_unit: &str| match small {
        0 => format!("{large}{unit}"),
        _ => format!("{large}{unit}{small}{small_unit}"),
    };
    match seconds {
        0 => format!("{}ms", time.as_millis()),
        1..10 if time.subsec_millis() >= 100 => format!("{seconds}.{}s", time.subsec_millis() / 100),
        1..60 => format!("{seconds}s"),
        60..3600 => pair(seconds / 60, "m", seconds % 60, "s"),
        3600..86400 => pair(seconds / 3600, "h", seconds % 3600 / 60, "m"),
        _ => pair(seconds / 86400, "d", seconds % 86400 / 3600, "h"),
    }
}

/// A duration of the API; empty when absent or negative.
pub(crate) fn proto_duration(time: Option<ProtoDuration>) -> String {
    time.and_then(|time| Duration::try_from(time).ok()).map(duration).unwrap_or_default()
}

/// `512 MiB`, `3.4 GiB`; empty for 0.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    if bytes == 0 {
        return String::new();
    }
    let unit = usize::try_from(bytes.ilog2() / 10).unwrap_or_default().min(UNITS.len() - 1);
    let whole = bytes >> (10 * unit);
    // Tenths from integers: no rounding up to "1024.0 MiB".
    let tenth = ((bytes - (whole << (10 * unit))) * 10) >> (10 * unit);
    if whole >= 10 || tenth == 0 {
        format!("{whole} {}", UNITS[unit])
    } else {
        format!("{whole}.{tenth} {}", UNITS[unit])
    }
}

/// MiB as people read them.
pub(crate) fn mib(mib: u64) -> String {
    bytes(mib.saturating_mul(1 << 20))
}

/// Seconds from now to a point in time, negative for the past.
fn from_now(time: &Timestamp) -> i64 {
    time.seconds.saturating_sub(jiff::Timestamp::now().as_second())
}

/// How long ago; empty when absent.
pub(crate) fn age(time: Option<&Timestamp>) -> String {
    time.map(|time| duration(Duration::from_secs(u64::try_from(-from_now(time)).unwrap_or_default())))
        .unwrap_or_default()
}

/// How long until then: `in 5m`, `over` for the past; empty when absent.
pub(crate) fn until(time: Option<&Timestamp>) -> String {
    match time.map(from_now) {
        None => String::new(),
        Some(seconds) => match u64::try_from(seconds) {
            Ok(seconds) => format!("in {}", duration(Duration::from_secs(seconds))),
            Err(_) => "over".to_owned(),
        },
    }
}

/// In UTC, to the second; empty when absent.
pub(crate) fn time(time: Option<&Timestamp>) -> String {
    time.and_then(|time| jiff::Timestamp::new(time.seconds, 0).ok())
        .map(|time| time.to_string())
        .unwrap_or_default()
}

/// Text without control characters other than newlines: what a guest wrote must not move a terminal's cursor.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

/// `yes`, or nothing.
pub(crate) fn yes(yes: bool) -> String {
    if yes { "yes".to_owned() } else { String::new() }
}

/// A number; nothing for 0.
pub(crate) fn some(number: u32) -> String {
    if number == 0 { String::new() } else { number.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_two_units_at_most() {
        let show = |millis| duration(Duration::from_millis(millis));
        let shown: Vec<_> =
            [0, 120, 1000, 4250, 59_000, 200_000, 3_900_000, 86_400_000, 100_000_000].map(show).into();
        assert_eq!(shown, ["0ms", "120ms", "1s", "4.2s", "59s", "3m20s", "1h5m", "1d", "1d3h"]);
    }

    #[test]
    fn bytes_have_binary_units() {
        let shown: Vec<_> =
            [0, 1, 1023, 1536, 512 << 20, (3 << 30) + (400 << 20), u64::MAX].map(bytes).into();
        assert_eq!(shown, ["", "1 B", "1023 B", "1.5 KiB", "512 MiB", "3.3 GiB", "16777215 TiB"]);
    }

    #[test]
    fn enums_lose_their_prefix() {
        assert_eq!(enum_name("VM_STATE_RUNNING"), "running");
        assert_eq!(enum_name("LEASE_STATE_VM_LOST"), "vm-lost");
        assert_eq!(enum_name("VM_STATE_UNSPECIFIED"), "");
        assert_eq!(enum_name("Running"), "running");
    }
}
