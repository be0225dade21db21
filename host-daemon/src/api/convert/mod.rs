//! Between the API's messages and the domain's types.
//!
//! What comes in is checked here, so that each refusal can name its field; what goes out can't fail.

pub(crate) mod agent;
pub(crate) mod desk;
pub(crate) mod event;
pub(crate) mod host;
pub(crate) mod input;
pub(crate) mod lease;
pub(crate) mod operation;
pub(crate) mod pool;
pub(crate) mod process;
pub(crate) mod screen;
pub(crate) mod template;
pub(crate) mod vm;
pub(crate) mod watch;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use crate::api::fields;
use crate::model::error::{Error, Result};

/// Most labels of one thing, and longest key or value in bytes.
const LABELS: usize = 16;
const LABEL: usize = 63;

/// Labels, each inside its limits.
pub(crate) fn labels(field: &str, given: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>> {
    if given.len() > LABELS {
        return Err(Error::field(
            field,
            format!("has {} entries, at most {LABELS} are allowed", given.len()),
        ));
    }
    for text in given.iter().flat_map(|(key, value)| [key, value]) {
        fields::required_text(field, text, LABEL)?;
    }
    Ok(given.clone())
}

pub(crate) fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    let mut nanos = time.subsec_nanosecond();
    let mut seconds = time.as_second();
    // Times before 1970 count their nanoseconds forwards here and backwards there.
    if nanos < 0 {
        seconds -= 1;
        nanos += 1_000_000_000;
    }
    prost_types::Timestamp { seconds, nanos }
}

pub(crate) fn duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

/// A difference, which may be negative.
pub(crate) fn micros(micros: i64) -> prost_types::Duration {
    let nanos = i32::try_from(micros % 1_000_000).unwrap_or(0) * 1000;
    prost_types::Duration { seconds: micros / 1_000_000, nanos }
}

/// A message as `google.protobuf.Any`; `name` is its full name.
pub(crate) fn any<M: prost::Message>(name: &str, message: &M) -> prost_types::Any {
    prost_types::Any { type_url: format!("type.googleapis.com/{name}"), value: message.encode_to_vec() }
}

/// `{collection}/{id}`, or nothing.
pub(crate) fn name_of<I: AsRef<str>>(collection: &str, id: Option<&I>) -> String {
    id.map(|id| format!("{collection}/{}", id.as_ref())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_the_epoch_keep_positive_nanoseconds() {
        let time = Timestamp::from_nanosecond(-1).expect("legal");
        assert_eq!(timestamp(time), prost_types::Timestamp { seconds: -1, nanos: 999_999_999 });
        assert_eq!(micros(-1_500_000), prost_types::Duration { seconds: -1, nanos: -500_000_000 });
    }
}
