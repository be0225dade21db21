//! Reading typed values out of rows. What can't be read is an error that names the column: the file may have been
//! edited by hand, or written by a newer daemon.

use std::time::Duration;

use jiff::Timestamp;
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use super::super::{StoreError, StoreResult};

/// Microseconds since 1970.
pub(super) fn micros(at: Timestamp) -> i64 {
    at.as_microsecond()
}

/// Microseconds, at most what a column holds.
pub(super) fn duration(value: Duration) -> i64 {
    i64::try_from(value.as_micros()).unwrap_or(i64::MAX)
}

/// SQLite's integers are signed; ours that could be larger do not occur.
pub(super) fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Typed columns of a row.
pub(super) trait Columns {
    fn text(&self, column: &'static str) -> StoreResult<String>;
    fn opt_text(&self, column: &'static str) -> StoreResult<Option<String>>;
    fn int(&self, column: &'static str) -> StoreResult<i64>;
    fn opt_int(&self, column: &'static str) -> StoreResult<Option<i64>>;

    fn unsigned<T: TryFrom<i64>>(&self, column: &'static str) -> StoreResult<T> {
        let value = self.int(column)?;
        T::try_from(value).map_err(|_| damaged(column, value))
    }

    fn flag(&self, column: &'static str) -> StoreResult<bool> {
        Ok(self.int(column)? != 0)
    }

    fn time(&self, column: &'static str) -> StoreResult<Timestamp> {
        let value = self.int(column)?;
        Timestamp::from_microsecond(value).map_err(|_| damaged(column, value))
    }

    fn opt_time(&self, column: &'static str) -> StoreResult<Option<Timestamp>> {
        self.opt_int(column)?
            .map(|value| Timestamp::from_microsecond(value).map_err(|_| damaged(column, value)))
            .transpose()
    }

    fn span(&self, column: &'static str) -> StoreResult<Duration> {
        Ok(Duration::from_micros(self.unsigned(column)?))
    }

    fn uid(&self, column: &'static str) -> StoreResult<Uuid> {
        let value = self.text(column)?;
        Uuid::try_parse(&value).map_err(|_| damaged(column, value))
    }

    fn parsed<T: std::str::FromStr>(&self, column: &'static str) -> StoreResult<T> {
        let value = self.text(column)?;
        value.parse().map_err(|_| damaged(column, value))
    }

    fn opt_parsed<T: std::str::FromStr>(&self, column: &'static str) -> StoreResult<Option<T>> {
        self.opt_text(column)?.map(|value| value.parse().map_err(|_| damaged(column, value))).transpose()
    }

    fn json<T: serde::de::DeserializeOwned>(&self, column: &'static str) -> StoreResult<T> {
        let value = self.text(column)?;
        serde_json::from_str(&value).map_err(|_| damaged(column, value))
    }

    /// A value of a closed list.
    fn choice<T>(&self, column: &'static str, parse: impl Fn(&str) -> Option<T>) -> StoreResult<T> {
        let value = self.text(column)?;
        parse(&value).ok_or_else(|| damaged(column, value))
    }

    /// A value of a closed list, or none.
    fn opt_choice<T>(
        &self,
        column: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> StoreResult<Option<T>> {
        self.opt_text(column)?.map(|value| parse(&value).ok_or_else(|| damaged(column, value))).transpose()
    }
}

impl Columns for SqliteRow {
    fn text(&self, column: &'static str) -> StoreResult<String> {
        self.try_get(column).map_err(super::database("read a column"))
    }

    fn opt_text(&self, column: &'static str) -> StoreResult<Option<String>> {
        self.try_get(column).map_err(super::database("read a column"))
    }

    fn int(&self, column: &'static str) -> StoreResult<i64> {
        self.try_get(column).map_err(super::database("read a column"))
    }

    fn opt_int(&self, column: &'static str) -> StoreResult<Option<i64>> {
        self.try_get(column).map_err(super::database("read a column"))
    }
}

/// What the writer's statements give back.
impl Columns for rusqlite::Row<'_> {
    fn text(&self, column: &'static str) -> StoreResult<String> {
        self.get(column).map_err(super::failed("read a column"))
    }

    fn opt_text(&self, column: &'static str) -> StoreResult<Option<String>> {
        self.get(column).map_err(super::failed("read a column"))
    }

    fn int(&self, column: &'static str) -> StoreResult<i64> {
        self.get(column).map_err(super::failed("read a column"))
    }

    fn opt_int(&self, column: &'static str) -> StoreResult<Option<i64>> {
        self.get(column).map_err(super::failed("read a column"))
    }
}

pub(super) fn damaged(column: &'static str, value: impl ToString) -> StoreError {
    StoreError::Damaged { column, value: value.to_string() }
}

/// A value as JSON text. Our own types always have a JSON form, so a failure is a damaged column.
pub(super) fn to_json(column: &'static str, value: &impl serde::Serialize) -> StoreResult<String> {
    serde_json::to_string(value).map_err(|error| damaged(column, error))
}
