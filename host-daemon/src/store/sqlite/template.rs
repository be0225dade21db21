//! Templates.

use rusqlite::params;
use sqlx::sqlite::SqliteRow;

use super::row::{Columns as _, int, micros, to_json};
use super::writer::Tx;
use super::{Sqlite, answer, constraint, database};
use crate::model::event::Event;
use crate::model::ids::TemplateId;
use crate::model::query::{Page, RequestId};
use crate::model::record::{Operation, Template, TemplateState};
use crate::model::template::CloneMethod;
use crate::store::StoreResult;

const STATES: [(TemplateState, &str); 3] = [
    (TemplateState::Preparing, "preparing"),
    (TemplateState::Ready, "ready"),
    (TemplateState::Deleting, "deleting"),
];
const METHODS: [(CloneMethod, &str); 3] =
    [(CloneMethod::Fork, "fork"), (CloneMethod::Restore, "restore"), (CloneMethod::Boot, "boot")];

fn state_text(state: TemplateState) -> &'static str {
    STATES.iter().find(|(s, _)| *s == state).map_or("deleting", |(_, text)| text)
}

fn method_text(method: CloneMethod) -> &'static str {
    METHODS.iter().find(|(m, _)| *m == method).map_or("boot", |(_, text)| text)
}

fn read(row: &SqliteRow) -> StoreResult<Template> {
    Ok(Template {
        id: row.parsed("id")?,
        uid: row.uid("uid")?,
        display_name: row.text("display_name")?,
        spec: row.json("spec")?,
        installed_software: row.json("installed_software")?,
        rdp_port: row.unsigned("rdp_port")?,
        state: row.choice("state", |text| STATES.iter().find(|(_, t)| *t == text).map(|(s, _)| *s))?,
        disk_sha256: row.text("disk_sha256")?,
        disk_size_bytes: row.unsigned("disk_size_bytes")?,
        clone_method: row
            .opt_choice("clone_method", |text| METHODS.iter().find(|(_, t)| *t == text).map(|(m, _)| *m))?,
        os: row.text("os")?,
        agent_version: row.text("agent_version")?,
        created: row.time("created")?,
        updated: row.time("updated")?,
        version: row.unsigned("version")?,
    })
}

fn insert_in(tx: &Tx<'_>, template: &Template) -> StoreResult<()> {
    tx.execute(
        "INSERT INTO templates (id, uid, display_name, spec, installed_software, rdp_port, state,
            disk_sha256, disk_size_bytes, clone_method, os, agent_version, created, updated, version)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        params![
            template.id.as_str(),
            template.uid.simple().to_string(),
            template.display_name,
            to_json("spec", &template.spec)?,
            to_json("installed_software", &template.installed_software)?,
            template.rdp_port,
            state_text(template.state),
            template.disk_sha256,
            int(template.disk_size_bytes),
            template.clone_method.map(method_text),
            template.os,
            template.agent_version,
            micros(template.created),
            micros(template.updated),
            int(template.version),
        ],
    )
    .map(drop)
    .map_err(constraint("template"))
}

fn update_in(tx: &Tx<'_>, template: &Template) -> StoreResult<()> {
    tx.execute_one(
        "template",
        "UPDATE templates SET installed_software = ?, state = ?, disk_sha256 = ?,
            disk_size_bytes = ?, clone_method = ?, os = ?, agent_version = ?, updated = ?, version = ?
         WHERE id = ? AND version = ?",
        params![
            to_json("installed_software", &template.installed_software)?,
            state_text(template.state),
            template.disk_sha256,
            int(template.disk_size_bytes),
            template.clone_method.map(method_text),
            template.os,
            template.agent_version,
            micros(template.updated),
            int(template.version),
            template.id.as_str(),
            int(template.version.saturating_sub(1)),
        ],
    )
}

impl Sqlite {
    /// Adds a template with the operation that prepares it.
    ///
    /// # Errors
    /// [`StoreError::Exists`](crate::store::StoreError::Exists) for a taken id or request id.
    pub async fn insert_template(
        &self,
        template: &Template,
        operation: &Operation,
        request: Option<&RequestId>,
        event: Event,
    ) -> StoreResult<()> {
        let (template, operation, request) = (template.clone(), operation.clone(), request.cloned());
        self.writer
            .write(move |tx| {
                insert_in(tx, &template)?;
                super::operation::insert_in(tx, &operation)?;
                answer(tx, request.as_ref(), &operation.id, template.created)?;
                tx.event(event)
            })
            .await
    }

    /// Writes what may change of a template; its version must be the next one.
    ///
    /// # Errors
    /// [`StoreError::Changed`](crate::store::StoreError::Changed) when another version is stored, or none.
    pub async fn update_template(&self, template: &Template, event: Event) -> StoreResult<()> {
        let template = template.clone();
        self.writer
            .write(move |tx| {
                update_in(tx, &template)?;
                tx.event(event)
            })
            .await
    }

    /// One template.
    ///
    /// # Errors
    /// Of the database only.
    pub async fn template(&self, id: &TemplateId) -> StoreResult<Option<Template>> {
        sqlx::query("SELECT * FROM templates WHERE id = ?")
            .bind(id.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(database("read a template"))?
            .map(|row| read(&row))
            .transpose()
    }

    /// Templates by id.
    ///
    /// # Errors
    /// Of the database only.
    pub async fn templates(&self, page: &Page) -> StoreResult<Vec<Template>> {
        sqlx::query("SELECT * FROM templates WHERE id > ? ORDER BY id LIMIT ?")
            .bind(&page.after)
            .bind(i64::from(page.limit))
            .fetch_all(&self.readers)
            .await
            .map_err(database("list templates"))?
            .iter()
            .map(read)
            .collect()
    }

    /// Removes a template.
    ///
    /// # Errors
    /// [`StoreError::Referred`](crate::store::StoreError::Referred) while a pool or VM uses it.
    pub async fn delete_template(&self, id: &TemplateId, event: Event) -> StoreResult<()> {
        let id = id.clone();
        self.writer
            .write(move |tx| {
                let sql = "DELETE FROM templates WHERE id = ?";
                let deleted = tx.execute(sql, [id.as_str()]).map_err(constraint("template"))?;
                if deleted == 0 { Ok(()) } else { tx.event(event) }
            })
            .await
    }

    /// Whether a pool or VM uses it.
    ///
    /// # Errors
    /// Of the database only.
    pub async fn template_in_use(&self, id: &TemplateId) -> StoreResult<bool> {
        let row = sqlx::query(
            "SELECT EXISTS (SELECT 1 FROM pools WHERE template = ?1)
                 OR EXISTS (SELECT 1 FROM vms WHERE template = ?1) AS used",
        )
        .bind(id.as_str())
        .fetch_one(&self.readers)
        .await
        .map_err(database("look for users of a template"))?;
        row.flag("used")
    }
}
