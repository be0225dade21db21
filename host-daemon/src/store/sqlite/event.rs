//! What happened, by revision.

use std::sync::Arc;

use jiff::Timestamp;
use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{QueryBuilder, Row as _};

use super::row::{Columns as _, damaged, int, micros};
use super::{PRUNED_AT_ONCE, Sqlite, database, failed};
use crate::model::event::{Event, EventFilter, EventKind};
use crate::model::lease::EndedAs;
use crate::model::vm::VmState;
use crate::store::{StoreError, StoreResult};

/// Revisions looked through by one read: a filter that matches little must not hold a reader for long.
const LOOKED_THROUGH: u64 = 50_000;

fn read(row: &SqliteRow) -> StoreResult<Event> {
    let state = |column| row.opt_choice(column, VmState::parse);
    Ok(Event {
        revision: row.unsigned("revision")?,
        at: row.time("at")?,
        kind: row.choice("kind", EventKind::parse)?,
        vm: row.opt_parsed("vm")?,
        pool: row.opt_parsed("pool")?,
        lease: row.opt_parsed("lease")?,
        template: row.opt_parsed("template")?,
        agent: row.opt_parsed("agent")?,
        moved: state("from_state")?.zip(state("to_state")?),
        ended: row.opt_choice("ended", EndedAs::parse)?,
        cause: row.text("cause")?,
        actor: row.text("actor")?,
        duration: row.opt_int("duration")?.map(|_| row.span("duration")).transpose()?,
    })
}

/// Revisions of the oldest event, or of the next one where there is none, and of the newest.
pub(super) async fn ends(readers: &SqlitePool) -> StoreResult<(u64, u64)> {
    let of = async |sql: &'static str| -> StoreResult<Option<u64>> {
        let row = sqlx::query(sql).fetch_optional(readers).await.map_err(database("read revisions"))?;
        row.map(|row| row.unsigned("revision")).transpose()
    };
    let oldest = of("SELECT revision FROM events ORDER BY revision LIMIT 1").await?;
    let newest = of("SELECT revision FROM events ORDER BY revision DESC LIMIT 1").await?;
    Ok((oldest.unwrap_or(1), newest.unwrap_or(0)))
}

pub(super) fn query(
    after: u64,
    through: u64,
    limit: u32,
    filter: &EventFilter,
) -> QueryBuilder<sqlx::Sqlite> {
    let mut query = QueryBuilder::new("SELECT * FROM events WHERE revision > ");
    query.push_bind(int(after)).push(" AND revision <= ").push_bind(int(through));
    if let Some(pool) = &filter.pool {
        query.push(" AND pool = ").push_bind(pool.to_string());
    }
    if let Some(vm) = &filter.vm {
        query.push(" AND vm = ").push_bind(vm.to_string());
    }
    if let Some(agent) = &filter.agent {
        query.push(" AND agent = ").push_bind(agent.to_string());
    }
    if let Some(since) = filter.since {
        query.push(" AND at >= ").push_bind(micros(since));
    }
    if !filter.kinds.is_empty() {
        query.push(" AND kind IN (");
        let mut list = query.separated(", ");
        for kind in &filter.kinds {
            list.push_bind(kind.as_str());
        }
        query.push(")");
    }
    query.push(" ORDER BY revision LIMIT ").push_bind(i64::from(limit));
    query
}

impl Sqlite {
    /// Writes down something that changed no row.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn note(&self, event: Event) -> StoreResult<()> {
        self.writer.write(move |tx| tx.event(event)).await
    }

    /// Events behind a revision that are wanted, oldest first, and the revision that they reach to: there may be more
    /// until that is the head.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when some of them have been pruned.
    pub async fn events(
        &self,
        after: u64,
        limit: u32,
        filter: &EventFilter,
    ) -> StoreResult<(Vec<Arc<Event>>, u64)> {
        // Taken before: whatever is committed until then is found.
        let through = self.changes.head().min(after.saturating_add(LOOKED_THROUGH));
        let rows = query(after, through, limit, filter)
            .build()
            .fetch_all(&self.readers)
            .await
            .map_err(database("read events"))?;
        // Looked at afterwards: what is there then was there while they were read.
        if ends(&self.readers).await?.0 > after + 1 {
            return Err(StoreError::Compacted(after));
        }
        let events: Vec<Arc<Event>> =
            rows.iter().map(|row| read(row).map(Arc::new)).collect::<StoreResult<_>>()?;
        let full = events.len() as u64 >= u64::from(limit);
        let reached = events.last().filter(|_| full).map_or(through, |last| last.revision);
        Ok((events, reached))
    }

    /// Deletes events older than this, and the oldest while there are more than so many; the newest stays, because it
    /// carries the revision. It goes in small steps, with other writes between them. Gives how many were deleted.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn prune_events(&self, before: Timestamp, keep: u64) -> StoreResult<u64> {
        let (oldest, newest) = ends(&self.readers).await?;
        let aged = self.first_since(before, oldest, newest).await?;
        let end = aged.max((newest + 1).saturating_sub(keep.max(1))).min(newest);
        let mut from = oldest;
        while from < end {
            let to = end.min(from + PRUNED_AT_ONCE);
            self.writer
                .write(move |tx| {
                    tx.execute("DELETE FROM events WHERE revision < ?", [int(to)])
                        .map_err(failed("prune events"))?;
                    tx.set_floor(to);
                    Ok(())
                })
                .await?;
            from = to;
        }
        Ok(end.saturating_sub(oldest))
    }

    /// The first revision that is not older than a time; found by halving, since both grow together.
    async fn first_since(&self, time: Timestamp, oldest: u64, newest: u64) -> StoreResult<u64> {
        let (mut low, mut high) = (oldest, newest + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            let row = sqlx::query("SELECT at FROM events WHERE revision >= ? ORDER BY revision LIMIT 1")
                .bind(int(middle))
                .fetch_optional(&self.readers)
                .await
                .map_err(database("look for an event"))?;
            let at: Option<i64> =
                row.map(|row| row.try_get(0)).transpose().map_err(|_| damaged("at", middle))?;
            if at.is_some_and(|at| at < micros(time)) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }
}
