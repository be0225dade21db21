//! Agents, their logs, and the feed that watches read.
//!
//! A watch needs no record of each change: every write of an agent takes the next revision, so what changed behind a
//! revision is what now has a higher one, each in its latest state. Only deletions leave no trace, hence the floor.

use jiff::Timestamp;
use sqlx::QueryBuilder;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::row::{Columns as _, int, micros, to_json};
use super::{Sqlite, answer, database, insert};
use crate::model::agent::{Agent, AgentFilter, LogEntry, LogSource};
use crate::model::ids::{AgentId, PoolId};
use crate::model::query::{Page, RequestId};
use crate::store::{StoreError, StoreResult};

/// Entries that an agent's log keeps.
const LOG_ENTRIES: u64 = 2000;
/// Without input and output, which may be large.
const BRIEF: &str = "SELECT number, version, revision, row, '' AS input, '' AS output FROM agents";
const FULL: &str = "SELECT number, version, revision, row, input, output FROM agents";

fn read(row: &SqliteRow) -> StoreResult<Agent> {
    let agent: Agent = row.json("row")?;
    Ok(Agent {
        number: row.unsigned("number")?,
        version: row.unsigned("version")?,
        input: row.text("input")?,
        output: row.text("output")?,
        ..agent
    })
}

fn read_all(rows: &[SqliteRow]) -> StoreResult<Vec<Agent>> {
    rows.iter().map(read).collect()
}

/// Where the feed stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentFeed {
    /// Revision of the last change.
    pub head: u64,
    /// Behind an older one, deletions are no longer known.
    pub floor: u64,
    /// Tells this history from another one.
    pub incarnation: String,
}

/// Which agent is wanted next.
#[derive(Debug, Clone, Default)]
pub struct NextAgent<'a> {
    /// Of one of these workflows.
    pub workflows: &'a [String],
    /// Of this pool.
    pub pool: Option<&'a PoolId>,
    /// Of none of these.
    pub busy: &'a [PoolId],
}

impl NextAgent<'_> {
    fn push(&self, query: &mut QueryBuilder<sqlx::Sqlite>) {
        query.push(" WHERE status = 'pending' AND NOT claimed AND workflow IN (");
        list(query, self.workflows.iter().cloned());
        query.push(")");
        if let Some(pool) = self.pool {
            query.push(" AND pool = ").push_bind(pool.to_string());
        }
        if !self.busy.is_empty() {
            query.push(" AND pool NOT IN (");
            list(query, self.busy.iter().map(PoolId::to_string));
            query.push(")");
        }
    }
}

fn list(query: &mut QueryBuilder<sqlx::Sqlite>, values: impl Iterator<Item = String>) {
    let mut values_of = query.separated(", ");
    for value in values {
        values_of.push_bind(value);
    }
}

async fn next_revision(tx: &mut SqliteConnection) -> StoreResult<u64> {
    sqlx::query("UPDATE agent_feed SET head = head + 1 RETURNING head")
        .fetch_one(tx)
        .await
        .map_err(database("take a revision"))?
        .unsigned("head")
}

async fn log_in(tx: &mut SqliteConnection, number: u64, entries: &[LogEntry]) -> StoreResult<()> {
    if entries.is_empty() {
        return Ok(());
    }
    for entry in entries {
        sqlx::query(
            "INSERT INTO agent_logs (agent, sequence, at, source, epoch, text)
             SELECT ?1, coalesce(max(sequence), 0) + 1, ?2, ?3, ?4, ?5 FROM agent_logs WHERE agent = ?1",
        )
        .bind(int(number))
        .bind(micros(entry.at))
        .bind(entry.source.as_str())
        .bind(int(entry.epoch))
        .bind(&entry.text)
        .execute(&mut *tx)
        .await
        .map_err(insert("agent"))?;
    }
    sqlx::query(
        "DELETE FROM agent_logs WHERE agent = ?1
             AND sequence <= (SELECT max(sequence) FROM agent_logs WHERE agent = ?1) - ?2",
    )
    .bind(int(number))
    .bind(int(LOG_ENTRIES))
    .execute(tx)
    .await
    .map_err(database("shorten a log"))?;
    Ok(())
}

impl Sqlite {
    /// Writes a new agent and gives its number.
    ///
    /// # Errors
    /// [`StoreError::Exists`] when its id, or the request id, is taken.
    pub async fn insert_agent(
        &self,
        agent: &Agent,
        log: &[LogEntry],
        request: Option<&RequestId>,
    ) -> StoreResult<u64> {
        let mut tx = self.begin().await?;
        let revision = next_revision(&mut tx).await?;
        let number = sqlx::query(
            "INSERT INTO agents (id, uid, pool, workflow, status, rank, not_before, queue_end, shots_from, claimed,
                updated, ended, version, revision, row, input, output)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL, 0, ?, NULL, ?, ?, ?, ?, '') RETURNING number",
        )
        .bind(agent.id.as_str())
        .bind(agent.uid.simple().to_string())
        .bind(agent.spec.pool.as_str())
        .bind(&agent.spec.workflow)
        .bind(agent.status.as_str())
        .bind(agent.rank())
        .bind(micros(agent.not_before))
        .bind(agent.queue_end().map(micros))
        .bind(micros(agent.updated))
        .bind(int(agent.version))
        .bind(int(revision))
        .bind(to_json("row", agent)?)
        .bind(&agent.input)
        .fetch_one(&mut *tx)
        .await
        .map_err(insert("agent"))?
        .unsigned("number")?;
        log_in(&mut tx, number, log).await?;
        answer(&mut tx, request, agent.id.as_str(), agent.created).await?;
        tx.commit().await.map_err(database("commit"))?;
        Ok(number)
    }

    /// Writes an agent whose version is one more than the stored one's. `request` answers with its id and epoch.
    ///
    /// # Errors
    /// [`StoreError::Changed`] when it is not as the caller thought; [`StoreError::Exists`] when the request id is taken.
    pub async fn update_agent(
        &self,
        agent: &Agent,
        log: &[LogEntry],
        request: Option<&RequestId>,
    ) -> StoreResult<()> {
        let mut tx = self.begin().await?;
        let revision = next_revision(&mut tx).await?;
        let done = sqlx::query(
            "UPDATE agents SET status = ?, not_before = ?, queue_end = ?, shots_from = ?, claimed = ?, updated = ?,
                ended = ?, version = ?, revision = ?, row = ?, output = coalesce(nullif(?, ''), output)
             WHERE number = ? AND version = ?",
        )
        .bind(agent.status.as_str())
        .bind(micros(agent.not_before))
        .bind(agent.queue_end().map(micros))
        .bind(agent.shots.first().map(|shot| micros(shot.created)))
        .bind(agent.claim.is_some())
        .bind(micros(agent.updated))
        .bind(agent.ended.map(micros))
        .bind(int(agent.version))
        .bind(int(revision))
        .bind(to_json("row", agent)?)
        .bind(&agent.output)
        .bind(int(agent.number))
        .bind(int(agent.version.saturating_sub(1)))
        .execute(&mut *tx)
        .await
        .map_err(insert("agent"))?;
        if done.rows_affected() != 1 {
            return Err(StoreError::Changed("agent"));
        }
        log_in(&mut tx, agent.number, log).await?;
        answer(&mut tx, request, &format!("{}/{}", agent.id, agent.epoch), agent.updated).await?;
        tx.commit().await.map_err(database("commit"))
    }

    /// One agent, whole.
    ///
    /// # Errors
    /// [`StoreError::Database`], [`StoreError::Damaged`].
    pub async fn agent(&self, id: &AgentId) -> StoreResult<Option<Agent>> {
        sqlx::query(sqlx::AssertSqlSafe(format!("{FULL} WHERE id = ?")))
            .bind(id.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(database("read an agent"))?
            .map(|row| read(&row))
            .transpose()
    }

    /// Agents without input and output, newest first; `after` in the page is a number.
    ///
    /// # Errors
    /// [`StoreError::Database`], [`StoreError::Damaged`].
    pub async fn agents(&self, filter: &AgentFilter, page: &Page) -> StoreResult<Vec<Agent>> {
        let mut query = QueryBuilder::new(BRIEF);
        query.push(" WHERE TRUE");
        if let Ok(after) = page.after.parse::<i64>() {
            query.push(" AND number < ").push_bind(after);
        }
        if let Some(pool) = &filter.pool {
            query.push(" AND pool = ").push_bind(pool.to_string());
        }
        if !filter.workflow.is_empty() {
            query.push(" AND workflow = ").push_bind(filter.workflow.clone());
        }
        if !filter.statuses.is_empty() {
            query.push(" AND status IN (");
            list(&mut query, filter.statuses.iter().map(|status| status.as_str().to_owned()));
            query.push(")");
        }
        if !filter.ids.is_empty() {
            query.push(" AND id IN (");
            list(&mut query, filter.ids.iter().map(AgentId::to_string));
            query.push(")");
        }
        query.push(" ORDER BY number DESC LIMIT ").push_bind(i64::from(page.limit));
        let rows = query.build().fetch_all(&self.readers).await.map_err(database("list agents"))?;
        read_all(&rows)
    }

    /// The agent to serve next, whole, or when the next one's pause is over.
    ///
    /// # Errors
    /// [`StoreError::Database`], [`StoreError::Damaged`].
    pub async fn next_agent(
        &self,
        wanted: &NextAgent<'_>,
        now: Timestamp,
    ) -> StoreResult<(Option<Agent>, Option<Timestamp>)> {
        let mut query = QueryBuilder::new(FULL);
        wanted.push(&mut query);
        query.push(" AND not_before <= ").push_bind(micros(now)).push(" ORDER BY rank, number LIMIT 1");
        let row = query.build().fetch_optional(&self.readers).await.map_err(database("look for an agent"))?;
        if let Some(row) = row {
            return Ok((Some(read(&row)?), None));
        }
        let mut query = QueryBuilder::new("SELECT min(not_before) AS next FROM agents");
        wanted.push(&mut query);
        let row = query.build().fetch_one(&self.readers).await.map_err(database("look for an agent"))?;
        Ok((None, row.opt_time("next")?))
    }

    /// Agents that somebody has, or whose VM is not given back yet; whole.
    ///
    /// # Errors
    /// [`StoreError::Database`], [`StoreError::Damaged`].
    pub async fn claimed_agents(&self) -> StoreResult<Vec<Agent>> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!("{FULL} WHERE claimed ORDER BY number")))
            .fetch_all(&self.readers)
            .await
            .map_err(database("list claimed agents"))?;
        read_all(&rows)
    }

    /// Some of the agents that wait too long for their first attempt, and some with a picture older than `shots_before`.
    ///
    /// # Errors
    /// [`StoreError::Database`], [`StoreError::Damaged`].
    pub async fn overdue_agents(&self, now: Timestamp, shots_before: Timestamp) -> StoreResult<Vec<Agent>> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "{BRIEF} WHERE (queue_end IS NOT NULL AND queue_end <= ? AND NOT claimed)
                OR (shots_from IS NOT NULL AND shots_from <= ?) LIMIT 100"
        )))
        .bind(micros(now))
        .bind(micros(shots_before))
        .fetch_all(&self.readers)
        .await
        .map_err(database("look for overdue agents"))?;
        read_all(&rows)
    }

    /// Deletes some of the agents that ended before this, with their logs, and tells which, and the deletion's revision.
    ///
    /// # Errors
    /// [`StoreError::Database`], [`StoreError::Damaged`].
    pub async fn prune_agents(&self, before: Timestamp) -> StoreResult<(u64, Vec<AgentId>)> {
        let mut tx = self.begin().await?;
        let rows = sqlx::query(
            "DELETE FROM agents WHERE number IN
                (SELECT number FROM agents WHERE ended IS NOT NULL AND ended < ? AND NOT claimed LIMIT 500)
             RETURNING id",
        )
        .bind(micros(before))
        .fetch_all(&mut *tx)
        .await
        .map_err(database("delete old agents"))?;
        if rows.is_empty() {
            return Ok((0, Vec::new()));
        }
        let revision = sqlx::query("UPDATE agent_feed SET head = head + 1, floor = head + 1 RETURNING head")
            .fetch_one(&mut *tx)
            .await
            .map_err(database("move the feed's floor"))?
            .unsigned("head")?;
        tx.commit().await.map_err(database("commit"))?;
        Ok((revision, rows.iter().map(|row| row.parsed("id")).collect::<StoreResult<_>>()?))
    }

    /// Adds to an agent's log.
    ///
    /// # Errors
    /// [`StoreError::Database`]; [`StoreError::Referred`] when the agent is gone.
    pub async fn log_agent(&self, number: u64, entries: &[LogEntry]) -> StoreResult<()> {
        let mut tx = self.begin().await?;
        log_in(&mut tx, number, entries).await?;
        tx.commit().await.map_err(database("commit"))
    }

    /// Entries of an agent's log behind a number, oldest first.
    ///
    /// # Errors
    /// [`StoreError::Database`], [`StoreError::Damaged`].
    pub async fn agent_log(&self, number: u64, after: u64, limit: u32) -> StoreResult<Vec<LogEntry>> {
        sqlx::query("SELECT * FROM agent_logs WHERE agent = ? AND sequence > ? ORDER BY sequence LIMIT ?")
            .bind(int(number))
            .bind(int(after))
            .bind(i64::from(limit))
            .fetch_all(&self.readers)
            .await
            .map_err(database("read a log"))?
            .iter()
            .map(|row| {
                Ok(LogEntry {
                    sequence: row.unsigned("sequence")?,
                    at: row.time("at")?,
                    source: row.choice("source", LogSource::parse)?,
                    epoch: row.unsigned("epoch")?,
                    text: row.text("text")?,
                })
            })
            .collect()
    }

    /// Where the feed stands.
    ///
    /// # Errors
    /// [`StoreError::Database`], [`StoreError::Damaged`].
    pub async fn agent_feed(&self) -> StoreResult<AgentFeed> {
        let row = sqlx::query("SELECT head, floor, incarnation FROM agent_feed")
            .fetch_one(&self.readers)
            .await
            .map_err(database("read the feed"))?;
        Ok(AgentFeed {
            head: row.unsigned("head")?,
            floor: row.unsigned("floor")?,
            incarnation: row.text("incarnation")?,
        })
    }

    /// Agents that changed behind a revision, without input and output, in the order of their last change, each with its
    /// revision.
    ///
    /// # Errors
    /// [`StoreError::Database`], [`StoreError::Damaged`].
    pub async fn agents_behind(&self, revision: u64, limit: u32) -> StoreResult<Vec<(u64, Agent)>> {
        sqlx::query(sqlx::AssertSqlSafe(format!("{BRIEF} WHERE revision > ? ORDER BY revision LIMIT ?")))
            .bind(int(revision))
            .bind(i64::from(limit))
            .fetch_all(&self.readers)
            .await
            .map_err(database("read changed agents"))?
            .iter()
            .map(|row| Ok((row.unsigned("revision")?, read(row)?)))
            .collect()
    }
}
