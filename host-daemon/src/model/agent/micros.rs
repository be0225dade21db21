//! Points in time as microseconds since 1970, as the store's columns have them.

use jiff::Timestamp;
use serde::{Deserialize as _, Deserializer, Serializer, de};

pub(in crate::model) fn serialize<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_i64(at.as_microsecond())
}

pub(in crate::model) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Timestamp, D::Error> {
    Timestamp::from_microsecond(i64::deserialize(deserializer)?).map_err(de::Error::custom)
}

/// The same where there may be none.
pub(super) mod optional {
    use super::{Deserializer, Serializer, Timestamp, de};
    use serde::Deserialize as _;

    pub(in super::super) fn serialize<S: Serializer>(
        at: &Option<Timestamp>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match at {
            Some(at) => serializer.serialize_some(&at.as_microsecond()),
            None => serializer.serialize_none(),
        }
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Timestamp>, D::Error> {
        let micros = Option::<i64>::deserialize(deserializer)?;
        micros.map(|micros| Timestamp::from_microsecond(micros).map_err(de::Error::custom)).transpose()
    }
}
