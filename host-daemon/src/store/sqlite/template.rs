//! Templates.

use sqlx::sqlite::SqliteRow;

use super::row::{Columns as _, int, micros, to_json};
use super::{Sqlite, answer, database, insert};
use crate::model::ids::TemplateId;
use crate::model::query::{Page, RequestId};
use crate::model::record::{Operation, Template, TemplateState};
use crate::model::template::CloneMethod;
use crate::store::{StoreError, StoreResult};

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

impl Sqlite {
    /// Adds a template with the operation that prepares it.
    ///
    /// # Errors
    /// [`StoreError::Exists`] for a taken id or request id.
    pub async fn insert_template(
        &self,
        template: &Template,
        operation: &Operation,
        request: Option<&RequestId>,
    ) -> StoreResult<()> {
        let mut tx = self.begin().await?;
        sqlx::query(
            "INSERT INTO templates (id, uid, display_name, spec, installed_software, rdp_port, state,
                disk_sha256, disk_size_bytes, clone_method, os, agent_version, created, updated, version)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(template.id.as_str())
        .bind(template.uid.simple().to_string())
        .bind(&template.display_name)
        .bind(to_json("spec", &template.spec)?)
        .bind(to_json("installed_software", &template.installed_software)?)
        .bind(i64::from(template.rdp_port))
        .bind(state_text(template.state))
        .bind(&template.disk_sha256)
        .bind(int(template.disk_size_bytes))
        .bind(template.clone_method.map(method_text))
        .bind(&template.os)
        .bind(&template.agent_version)
        .bind(micros(template.created))
        .bind(micros(template.updated))
        .bind(int(template.version))
        .execute(&mut *tx)
        .await
        .map_err(insert("template"))?;
        super::operation::insert_in(&mut tx, operation).await?;
        answer(&mut tx, request, &operation.id, template.created).await?;
        tx.commit().await.map_err(database("commit"))
    }

    /// Writes what may change of a template; its version must be the next one.
    ///
    /// # Errors
    /// [`StoreError::Changed`] when another version is stored, or none.
    pub async fn update_template(&self, template: &Template) -> StoreResult<()> {
        let done = sqlx::query(
            "UPDATE templates SET installed_software = ?, state = ?, disk_sha256 = ?,
                disk_size_bytes = ?, clone_method = ?, os = ?, agent_version = ?, updated = ?, version = ?
             WHERE id = ? AND version = ?",
        )
        .bind(to_json("installed_software", &template.installed_software)?)
        .bind(state_text(template.state))
        .bind(&template.disk_sha256)
        .bind(int(template.disk_size_bytes))
        .bind(template.clone_method.map(method_text))
        .bind(&template.os)
        .bind(&template.agent_version)
        .bind(micros(template.updated))
        .bind(int(template.version))
        .bind(template.id.as_str())
        .bind(int(template.version.saturating_sub(1)))
        .execute(&self.writer)
        .await
        .map_err(database("update a template"))?;
        if done.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Changed("template")) }
    }

    /// One template.
    ///
    /// # Errors
    /// [`StoreError::Database`], [`StoreError::Damaged`].
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
    /// [`StoreError::Database`], [`StoreError::Damaged`].
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
    /// [`StoreError::Referred`] while a pool or VM uses it.
    pub async fn delete_template(&self, id: &TemplateId) -> StoreResult<()> {
        sqlx::query("DELETE FROM templates WHERE id = ?")
            .bind(id.as_str())
            .execute(&self.writer)
            .await
            .map_err(insert("template"))?;
        Ok(())
    }

    /// Whether a pool or VM uses it.
    ///
    /// # Errors
    /// [`StoreError::Database`].
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
