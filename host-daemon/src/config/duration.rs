//! Durations as people write them: `300ms`, `90s`, `1h 30m`.

use std::time::Duration;

use jiff::SignedDuration;
use serde::{Deserialize as _, Deserializer, Serializer, de, ser};

pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    let duration = SignedDuration::try_from(*duration).map_err(ser::Error::custom)?;
    serializer.serialize_str(&format!("{duration:#}"))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    let duration: SignedDuration = text.parse().map_err(|_| {
        de::Error::custom(format!("{text:?} is no duration; write it like 300ms, 90s or 1h 30m"))
    })?;
    Duration::try_from(duration).map_err(|_| de::Error::custom(format!("{text:?} is negative")))
}
