//! Agents and their logs.

use jiff::Timestamp;
use rusqlite::params;
use sqlx::QueryBuilder;
use sqlx::sqlite::SqliteRow;

use super::row::{Columns as _, damaged, int, micros, to_json};
use super::writer::Tx;
use super::{Sqlite, answer, constraint, database, failed};
use crate::model::agent::{Agent, AgentFilter, AgentStatus, LogEntry, LogSource};
use crate::model::event::{Event, EventKind};
use crate::model::ids::{AgentId, PoolId};
use crate::model::query::{Page, RequestId};
use crate::store::StoreResult;

/// Entries that an agent's log keeps.
const LOG_ENTRIES: u64 = 2000;
/// Agents deleted in one write: each may have that many entries of 4 KiB, and others wait meanwhile.
const PRUNED_AT_ONCE: u32 = 10;
/// Without input and output, which may be large.
const BRIEF: &str = "SELECT number, version, row, '' AS input, '' AS output FROM agents";
const FULL: &str = "SELECT number, version, row, input, output FROM agents";

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
    /// The first of each workflow by index, and of those few the first: no row is read but the one that is wanted.
    pub(super) fn query(&self, now: Timestamp) -> QueryBuilder<sqlx::Sqlite> {
        let mut query = QueryBuilder::new(FULL);
        query.push(" WHERE number = (SELECT first.number FROM json_each(");
        query.push_bind(serde_json::Value::from(self.workflows).to_string());
        query.push(
            ") AS one JOIN agents AS first ON first.number = (SELECT number FROM agents WHERE workflow = one.value",
        );
        self.push(&mut query);
        query.push(" AND not_before <= ").push_bind(micros(now));
        query.push(" ORDER BY rank, number LIMIT 1) ORDER BY first.rank, first.number LIMIT 1)");
        query
    }

    /// When the next pause is over.
    pub(super) fn pause_query(&self) -> QueryBuilder<sqlx::Sqlite> {
        let mut query = QueryBuilder::new(
            "SELECT min(not_before) AS next FROM agents INDEXED BY agents_to_run WHERE workflow IN (",
        );
        list(&mut query, self.workflows.iter().cloned());
        query.push(")");
        self.push(&mut query);
        query
    }

    fn push(&self, query: &mut QueryBuilder<sqlx::Sqlite>) {
        query.push(" AND status = 'pending' AND NOT claimed");
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

/// Agents, newest first. An index has those of one status in order; of several, their lists are merged, unless a pool's or a
/// workflow's list, or the agents' ids, are looked through anyway.
pub(super) fn query(filter: &AgentFilter, page: &Page) -> QueryBuilder<sqlx::Sqlite> {
    let apart = filter.pool.is_none() && filter.workflow.is_empty() && filter.ids.is_empty();
    let mut distinct = Vec::with_capacity(filter.statuses.len());
    for status in &filter.statuses {
        if !distinct.contains(status) {
            distinct.push(*status);
        }
    }
    let lists: Vec<&[AgentStatus]> = match distinct.as_slice() {
        several @ [_, _, ..] if apart => several.chunks(1).collect(),
        statuses => vec![statuses],
    };
    let mut query = QueryBuilder::new("");
    for (i, statuses) in lists.into_iter().enumerate() {
        query.push(if i > 0 { " UNION ALL " } else { "" }).push(BRIEF).push(" WHERE TRUE");
        if let Ok(after) = page.after.parse::<i64>() {
            query.push(" AND number < ").push_bind(after);
        }
        if let Some(pool) = &filter.pool {
            query.push(" AND pool = ").push_bind(pool.to_string());
        }
        if !filter.workflow.is_empty() {
            query.push(" AND workflow = ").push_bind(filter.workflow.clone());
        }
        match statuses {
            [] => {}
            [status] => {
                query.push(" AND status = ").push_bind(status.as_str());
            }
            statuses => {
                // Not by the index of statuses, whose lists would be sorted into one.
                query.push(" AND +status IN (");
                list(&mut query, statuses.iter().map(|status| status.as_str().to_owned()));
                query.push(")");
            }
        }
        if !filter.ids.is_empty() {
            query.push(" AND id IN (");
            list(&mut query, filter.ids.iter().map(AgentId::to_string));
            query.push(")");
        }
    }
    query.push(" ORDER BY number DESC LIMIT ").push_bind(i64::from(page.limit));
    query
}

fn log_in(tx: &Tx<'_>, number: u64, entries: &[LogEntry]) -> StoreResult<()> {
    if entries.is_empty() {
        return Ok(());
    }
    for entry in entries {
        tx.execute(
            "INSERT INTO agent_logs (agent, sequence, at, source, epoch, text)
             SELECT ?1, coalesce(max(sequence), 0) + 1, ?2, ?3, ?4, ?5 FROM agent_logs WHERE agent = ?1",
            params![int(number), micros(entry.at), entry.source.as_str(), int(entry.epoch), entry.text],
        )
        .map_err(constraint("agent"))?;
    }
    tx.execute(
        "DELETE FROM agent_logs WHERE agent = ?1
             AND sequence <= (SELECT max(sequence) FROM agent_logs WHERE agent = ?1) - ?2",
        params![int(number), int(LOG_ENTRIES)],
    )
    .map_err(failed("shorten a log"))?;
    Ok(())
}

impl Sqlite {
    /// Writes a new agent and gives its number.
    ///
    /// # Errors
    /// `StoreError::Exists` when its id, or the request id, is taken.
    pub async fn insert_agent(
        &self,
        agent: &Agent,
        log: Vec<LogEntry>,
        request: Option<&RequestId>,
        event: Event,
    ) -> StoreResult<u64> {
        let row = to_json("row", agent)?;
        let (agent, request) = (agent.clone(), request.cloned());
        self.writer
            .write(move |tx| {
                tx.execute(
                    "INSERT INTO agents (id, uid, pool, workflow, status, rank, not_before, queue_end, shots_from,
                        claimed, updated, ended, version, row, input, output)
                     VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL, 0, ?, NULL, ?, ?, ?, '')",
                    params![
                        agent.id.as_str(),
                        agent.uid.simple().to_string(),
                        agent.spec.pool.as_str(),
                        agent.spec.workflow,
                        agent.status.as_str(),
                        agent.rank(),
                        micros(agent.not_before),
                        agent.queue_end().map(micros),
                        micros(agent.updated),
                        int(agent.version),
                        row,
                        agent.input,
                    ],
                )
                .map_err(constraint("agent"))?;
                let number = tx.db.last_insert_rowid();
                let number = u64::try_from(number).map_err(|_| damaged("number", number))?;
                log_in(tx, number, &log)?;
                answer(tx, request.as_ref(), agent.id.as_str(), agent.created)?;
                tx.event(event)?;
                Ok(number)
            })
            .await
    }

    /// Writes an agent whose version is one more than the stored one's. `request` answers with its id and epoch.
    ///
    /// # Errors
    /// `StoreError::Changed` when it is not as the caller thought; `StoreError::Exists` when the request id is taken.
    pub async fn update_agent(
        &self,
        agent: &Agent,
        log: Vec<LogEntry>,
        request: Option<&RequestId>,
        event: Event,
    ) -> StoreResult<()> {
        let row = to_json("row", agent)?;
        let (agent, request) = (agent.clone(), request.cloned());
        self.writer
            .write(move |tx| {
                tx.execute_one(
                    "agent",
                    "UPDATE agents SET status = ?, not_before = ?, queue_end = ?, shots_from = ?, claimed = ?,
                        updated = ?, ended = ?, version = ?, row = ?, output = coalesce(nullif(?, ''), output)
                     WHERE number = ? AND version = ?",
                    params![
                        agent.status.as_str(),
                        micros(agent.not_before),
                        agent.queue_end().map(micros),
                        agent.shots.first().map(|shot| micros(shot.created)),
                        agent.claim.is_some(),
                        micros(agent.updated),
                        agent.ended.map(micros),
                        int(agent.version),
                        row,
                        agent.output,
                        int(agent.number),
                        int(agent.version.saturating_sub(1)),
                    ],
                )?;
                log_in(tx, agent.number, &log)?;
                let resource = format!("{}/{}", agent.id, agent.epoch);
                answer(tx, request.as_ref(), &resource, agent.updated)?;
                tx.event(event)
            })
            .await
    }

    /// One agent, whole.
    ///
    /// # Errors
    /// `StoreError::Database`, `StoreError::Damaged`.
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
    /// `StoreError::Database`, `StoreError::Damaged`.
    pub async fn agents(&self, filter: &AgentFilter, page: &Page) -> StoreResult<Vec<Agent>> {
        let mut query = query(filter, page);
        let rows = query.build().fetch_all(&self.readers).await.map_err(database("list agents"))?;
        read_all(&rows)
    }

    /// The agent to serve next, whole, or when the next one's pause is over.
    ///
    /// # Errors
    /// `StoreError::Database`, `StoreError::Damaged`.
    pub async fn next_agent(
        &self,
        wanted: &NextAgent<'_>,
        now: Timestamp,
    ) -> StoreResult<(Option<Agent>, Option<Timestamp>)> {
        let mut query = wanted.query(now);
        let row = query.build().fetch_optional(&self.readers).await.map_err(database("look for an agent"))?;
        if let Some(row) = row {
            return Ok((Some(read(&row)?), None));
        }
        let mut query = wanted.pause_query();
        let row = query.build().fetch_one(&self.readers).await.map_err(database("look for an agent"))?;
        Ok((None, row.opt_time("next")?))
    }

    /// Agents that somebody has, or whose VM is not given back yet, without input and output.
    ///
    /// # Errors
    /// `StoreError::Database`, `StoreError::Damaged`.
    pub async fn claimed_agents(&self) -> StoreResult<Vec<Agent>> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!("{BRIEF} WHERE claimed ORDER BY number")))
            .fetch_all(&self.readers)
            .await
            .map_err(database("list claimed agents"))?;
        read_all(&rows)
    }

    /// Some of the agents that wait too long for a VM, and some with a picture older than `shots_before`.
    ///
    /// # Errors
    /// `StoreError::Database`, `StoreError::Damaged`.
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

    /// Deletes some of the agents that ended before this, with their logs, and tells which.
    ///
    /// # Errors
    /// `StoreError::Database`, `StoreError::Damaged`.
    pub async fn prune_agents(&self, before: Timestamp) -> StoreResult<Vec<AgentId>> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "{BRIEF} WHERE ended IS NOT NULL AND ended < ? AND NOT claimed LIMIT {PRUNED_AT_ONCE}"
        )))
        .bind(micros(before))
        .fetch_all(&self.readers)
        .await
        .map_err(database("look for old agents"))?;
        let old = read_all(&rows)?;
        if old.is_empty() {
            return Ok(Vec::new());
        }
        self.writer
            .write(move |tx| {
                let mut gone = Vec::with_capacity(old.len());
                for agent in old {
                    // One that ended stays as it is, but for its pictures.
                    let sql = "DELETE FROM agents WHERE number = ? AND ended IS NOT NULL AND NOT claimed";
                    let deleted = tx.execute(sql, [int(agent.number)]).map_err(failed("delete an agent"))?;
                    if deleted > 0 {
                        tx.event(Event::of_agent(EventKind::AgentDeleted, &agent, ""))?;
                        gone.push(agent.id);
                    }
                }
                Ok(gone)
            })
            .await
    }

    /// Adds to an agent's log.
    ///
    /// # Errors
    /// `StoreError::Database`; `StoreError::Referred` when the agent is gone.
    pub async fn log_agent(&self, number: u64, entries: Vec<LogEntry>) -> StoreResult<()> {
        self.writer.write(move |tx| log_in(tx, number, &entries)).await
    }

    /// Entries of an agent's log behind a number, oldest first.
    ///
    /// # Errors
    /// `StoreError::Database`, `StoreError::Damaged`.
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
}
