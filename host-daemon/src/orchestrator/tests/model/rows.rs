//! The store as it is at one moment, read past the daemon: what is committed counts, whatever the daemon thinks.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, Row};

use crate::model::agent::Agent;
use crate::model::vm::VmState;

pub(super) struct Rows {
    pub(super) vms: Vec<VmRow>,
    pub(super) leases: Vec<LeaseRow>,
    pub(super) agents: Vec<AgentRow>,
    /// Ids and states.
    pub(super) templates: Vec<(String, String)>,
    /// Operations that go on.
    pub(super) operations: Vec<String>,
    /// Behind a revision.
    pub(super) events: Vec<EventRow>,
}

#[derive(Debug)]
pub(super) struct VmRow {
    pub(super) id: String,
    pub(super) uid: String,
    pub(super) pool: Option<String>,
    pub(super) state: VmState,
    #[expect(dead_code, reason = "shown where it is wrong")]
    pub(super) reason: String,
    pub(super) leased: bool,
    pub(super) idle: bool,
    pub(super) lease: Option<String>,
    pub(super) pending: Option<String>,
    pub(super) clean: bool,
    pub(super) hot: bool,
    pub(super) suspended: bool,
}

impl VmRow {
    /// Nobody is at work on it, nor has to be.
    pub(super) fn at_rest(&self) -> bool {
        !self.state.is_transient() && (self.pending.is_none() || self.leased)
    }
}

#[derive(Debug)]
pub(super) struct LeaseRow {
    pub(super) id: String,
    pub(super) vm: String,
    pub(super) ended: Option<String>,
    pub(super) why: String,
    pub(super) suspended: bool,
    pub(super) proven: bool,
    pub(super) purpose: String,
    /// Microseconds since 1970.
    pub(super) expires: i64,
}

#[derive(Debug)]
pub(super) struct AgentRow {
    pub(super) agent: Agent,
    pub(super) output: String,
    pub(super) claimed: bool,
}

impl AgentRow {
    /// For a VM.
    pub(super) fn waits(&self) -> bool {
        self.agent.claim.as_ref().is_some_and(|claim| claim.lease.is_none())
    }
}

#[derive(Debug)]
pub(super) struct EventRow {
    pub(super) revision: u64,
    pub(super) kind: String,
    pub(super) vm: Option<String>,
    pub(super) moved: Option<(VmState, VmState)>,
    pub(super) cause: String,
}

/// A reader of its own.
pub(super) struct Reader(Connection);

impl Reader {
    pub(super) fn open(path: &Path) -> rusqlite::Result<Self> {
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map(Self)
    }

    /// Everything at one moment, and the events behind a revision.
    pub(super) fn read(&mut self, after: u64) -> rusqlite::Result<Rows> {
        let tx = self.0.transaction()?;
        let rows = Rows {
            vms: all(
                &tx,
                "SELECT id, uid, pool, state, state_reason, availability, lease, pending, clean, hot, suspended
                 FROM vms ORDER BY id",
                |row| {
                    let availability: String = row.get(5)?;
                    Ok(VmRow {
                        id: row.get(0)?,
                        uid: row.get(1)?,
                        pool: row.get(2)?,
                        state: state(row, 3)?,
                        reason: row.get(4)?,
                        leased: availability == "leased",
                        idle: availability == "idle",
                        lease: row.get(6)?,
                        pending: row.get(7)?,
                        clean: row.get(8)?,
                        hot: row.get(9)?,
                        suspended: row.get(10)?,
                    })
                },
            )?,
            leases: all(
                &tx,
                "SELECT id, vm, ended, end_reason, suspended IS NOT NULL, receipt IS NOT NULL, purpose, expires
                 FROM leases",
                |row| {
                    Ok(LeaseRow {
                        id: row.get(0)?,
                        vm: row.get(1)?,
                        ended: row.get(2)?,
                        why: row.get(3)?,
                        suspended: row.get(4)?,
                        proven: row.get(5)?,
                        purpose: row.get(6)?,
                        expires: row.get(7)?,
                    })
                },
            )?,
            agents: all(&tx, "SELECT row, output, claimed FROM agents ORDER BY number", |row| {
                let text: String = row.get(0)?;
                let agent = serde_json::from_str(&text).map_err(|error| {
                    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, error.into())
                })?;
                Ok(AgentRow { agent, output: row.get(1)?, claimed: row.get(2)? })
            })?,
            templates: all(&tx, "SELECT id, state FROM templates", |row| Ok((row.get(0)?, row.get(1)?)))?,
            operations: all(&tx, "SELECT id FROM operations WHERE outcome IS NULL", |row| row.get(0))?,
            events: {
                let mut query = tx.prepare_cached(
                    "SELECT revision, kind, vm, from_state, to_state, cause FROM events WHERE revision > ?
                     ORDER BY revision",
                )?;
                let after = i64::try_from(after).unwrap_or(i64::MAX);
                let events = query.query_map([after], |row| {
                    let moved = match row.get::<_, Option<String>>(3)? {
                        None => None,
                        Some(_) => Some((state(row, 3)?, state(row, 4)?)),
                    };
                    let revision: i64 = row.get(0)?;
                    Ok(EventRow {
                        revision: revision.unsigned_abs(),
                        kind: row.get(1)?,
                        vm: row.get(2)?,
                        moved,
                        cause: row.get(5)?,
                    })
                })?;
                events.collect::<rusqlite::Result<_>>()?
            },
        };
        Ok(rows)
    }
}

fn all<T>(
    db: &Connection,
    sql: &str,
    read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<Vec<T>> {
    db.prepare_cached(sql)?.query_map([], read)?.collect()
}

fn state(row: &Row<'_>, column: usize) -> rusqlite::Result<VmState> {
    let text: String = row.get(column)?;
    VmState::parse(&text).ok_or_else(|| rusqlite::Error::InvalidColumnName(text))
}
