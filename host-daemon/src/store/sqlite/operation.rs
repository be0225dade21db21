//! Operations.

use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::row::{Columns as _, damaged, micros};
use super::{Sqlite, database, insert};
use crate::model::query::Page;
use crate::model::record::{Operation, Outcome, Phase};
use crate::store::StoreResult;

fn read(row: &SqliteRow) -> StoreResult<Operation> {
    let outcome = match row.opt_text("outcome")?.as_deref() {
        None => None,
        Some("ready") => Some(Outcome::Ready),
        Some("cancelled") => Some(Outcome::Cancelled),
        Some("failed") => {
            Some(Outcome::Failed { reason: row.text("reason")?, message: row.text("message")? })
        }
        Some(other) => return Err(damaged("outcome", other)),
    };
    Ok(Operation {
        id: row.text("id")?,
        template: row.parsed("template")?,
        phase: row.choice("phase", Phase::parse)?,
        outcome,
        created: row.time("created")?,
        updated: row.time("updated")?,
    })
}

fn outcome_columns(outcome: Option<&Outcome>) -> (Option<&'static str>, &str, &str) {
    match outcome {
        None => (None, "", ""),
        Some(Outcome::Ready) => (Some("ready"), "", ""),
        Some(Outcome::Cancelled) => (Some("cancelled"), "", ""),
        Some(Outcome::Failed { reason, message }) => (Some("failed"), reason, message),
    }
}

pub(super) async fn insert_in(tx: &mut SqliteConnection, operation: &Operation) -> StoreResult<()> {
    let (outcome, reason, message) = outcome_columns(operation.outcome.as_ref());
    sqlx::query(
        "INSERT INTO operations (id, template, phase, outcome, reason, message, created, updated)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(&operation.id)
    .bind(operation.template.as_str())
    .bind(operation.phase.as_str())
    .bind(outcome)
    .bind(reason)
    .bind(message)
    .bind(micros(operation.created))
    .bind(micros(operation.updated))
    .execute(tx)
    .await
    .map_err(insert("operation"))?;
    Ok(())
}

impl Sqlite {
    /// Writes how far an operation is.
    ///
    /// # Errors
    /// [`crate::store::StoreError::Database`].
    pub async fn update_operation(&self, operation: &Operation) -> StoreResult<()> {
        let (outcome, reason, message) = outcome_columns(operation.outcome.as_ref());
        sqlx::query(
            "UPDATE operations SET phase = ?, outcome = ?, reason = ?, message = ?, updated = ? WHERE id = ?",
        )
        .bind(operation.phase.as_str())
        .bind(outcome)
        .bind(reason)
        .bind(message)
        .bind(micros(operation.updated))
        .bind(&operation.id)
        .execute(&self.writer)
        .await
        .map_err(database("update an operation"))?;
        Ok(())
    }

    /// One operation.
    ///
    /// # Errors
    /// [`crate::store::StoreError::Database`].
    pub async fn operation(&self, id: &str) -> StoreResult<Option<Operation>> {
        sqlx::query("SELECT * FROM operations WHERE id = ?")
            .bind(id)
            .fetch_optional(&self.readers)
            .await
            .map_err(database("read an operation"))?
            .map(|row| read(&row))
            .transpose()
    }

    /// Operations by id.
    ///
    /// # Errors
    /// [`crate::store::StoreError::Database`].
    pub async fn operations(&self, page: &Page) -> StoreResult<Vec<Operation>> {
        sqlx::query("SELECT * FROM operations WHERE id > ? ORDER BY id LIMIT ?")
            .bind(&page.after)
            .bind(i64::from(page.limit))
            .fetch_all(&self.readers)
            .await
            .map_err(database("list operations"))?
            .iter()
            .map(read)
            .collect()
    }

    /// Removes an operation.
    ///
    /// # Errors
    /// [`crate::store::StoreError::Database`].
    pub async fn delete_operation(&self, id: &str) -> StoreResult<()> {
        sqlx::query("DELETE FROM operations WHERE id = ?")
            .bind(id)
            .execute(&self.writer)
            .await
            .map_err(database("delete an operation"))?;
        Ok(())
    }
}
