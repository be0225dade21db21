//! Operations.

use sqlx::QueryBuilder;
use sqlx::sqlite::SqliteRow;

use super::row::{Columns as _, damaged, micros, to_json};
use super::writer::Tx;
use super::{Sqlite, answer, constraint, database, failed};
use crate::model::query::{Page, RequestId};
use crate::model::record::{Operation, Outcome, Phase, Work};
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
        work: match row.text("kind")?.as_str() {
            "create_template" => Work::CreateTemplate(row.parsed("subject")?),
            "backup_store" => Work::BackupStore(row.json("subject")?),
            other => return Err(damaged("kind", other)),
        },
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

fn work_columns(work: &Work) -> StoreResult<(&'static str, String)> {
    Ok(match work {
        Work::CreateTemplate(template) => ("create_template", template.to_string()),
        Work::BackupStore(backup) => ("backup_store", to_json("subject", backup)?),
    })
}

pub(super) fn insert_in(tx: &Tx<'_>, operation: &Operation) -> StoreResult<()> {
    let (outcome, reason, message) = outcome_columns(operation.outcome.as_ref());
    let (kind, subject) = work_columns(&operation.work)?;
    tx.execute(
        "INSERT INTO operations (id, kind, subject, phase, outcome, reason, message, created, updated)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            &operation.id,
            kind,
            subject,
            operation.phase.as_str(),
            outcome,
            reason,
            message,
            micros(operation.created),
            micros(operation.updated),
        ),
    )
    .map(drop)
    .map_err(constraint("operation"))
}

pub(super) fn query(page: &Page) -> QueryBuilder<sqlx::Sqlite> {
    let mut query = QueryBuilder::new("SELECT * FROM operations WHERE id > ");
    query.push_bind(page.after.clone()).push(" ORDER BY id LIMIT ").push_bind(i64::from(page.limit));
    query
}

impl Sqlite {
    /// Adds an operation.
    ///
    /// # Errors
    /// [`StoreError::Exists`](crate::store::StoreError::Exists) for a taken id or request id.
    pub async fn insert_operation(
        &self,
        operation: &Operation,
        request: Option<&RequestId>,
    ) -> StoreResult<()> {
        let (operation, request) = (operation.clone(), request.cloned());
        self.writer
            .write(move |tx| {
                insert_in(tx, &operation)?;
                answer(tx, request.as_ref(), &operation.id, operation.created)
            })
            .await
    }

    /// Writes how far an operation is.
    ///
    /// # Errors
    /// [`crate::store::StoreError::Database`].
    pub async fn update_operation(&self, operation: &Operation) -> StoreResult<()> {
        let operation = operation.clone();
        self.writer
            .write(move |tx| {
                let (outcome, reason, message) = outcome_columns(operation.outcome.as_ref());
                let (_, subject) = work_columns(&operation.work)?;
                tx.execute(
                    "UPDATE operations
                     SET subject = ?, phase = ?, outcome = ?, reason = ?, message = ?, updated = ?
                     WHERE id = ?",
                    (
                        subject,
                        operation.phase.as_str(),
                        outcome,
                        reason,
                        message,
                        micros(operation.updated),
                        &operation.id,
                    ),
                )
                .map(drop)
                .map_err(failed("update an operation"))
            })
            .await
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
        query(page)
            .build()
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
        let id = id.to_owned();
        self.writer
            .write(move |tx| {
                tx.execute("DELETE FROM operations WHERE id = ?", [id])
                    .map(drop)
                    .map_err(failed("delete an operation"))
            })
            .await
    }
}
