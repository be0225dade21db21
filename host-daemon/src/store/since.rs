//! What a copy of the store can't know: who had its VMs since it was taken.
//!
//! A VM that is free in the copy may have been leased since, and one that is leased there may have been given back and
//! leased to somebody else, whose desktop the first holder must not get to see. The store that the copy replaces knows who
//! was there last. Where it does not prove that nobody was, a VM goes back to clean before anybody gets it.
//!
//! | VM in the copy | in the replaced store | becomes |
//! | --- | --- | --- |
//! | leased | the same lease is live on the same VM | still leased: a lease that has ended, or left a VM, never comes back to it |
//! | leased | anything else, or nothing that can be read | reset, its lease ended as revoked |
//! | ready for a lease | | reset |
//! | free, used by name | the very same row | left as it is |
//! | free, used by name | anything else | reset |
//! | quarantined, failed, kept or forked | | left as it is: no lease gets such a VM |
//!
//! Agents whose claim does not go on get an epoch that nobody was given before.

use std::collections::HashSet;
use std::path::Path;

use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags, params};

use crate::model::event::EventKind;
use crate::model::lease::EndedAs;

/// Who has which VM, as the store says that is replaced.
#[derive(Default)]
pub(super) struct Present {
    /// Live leases and their VMs, by uid.
    leases: HashSet<(String, String)>,
    /// VMs by uid, with the version of their row and when it was written.
    vms: HashSet<(String, i64, i64)>,
}

impl Present {
    /// Reads it without changing anything. A store that is damaged proves nothing, so that is an error.
    pub(super) fn read(path: &Path) -> rusqlite::Result<Self> {
        // Of what its daemon wrote last, some may still be in the log beside it, which is read too.
        let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let found: String = db.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
        if found != "ok" {
            let error = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
            return Err(rusqlite::Error::SqliteFailure(error, Some(found)));
        }
        let mut leases = db.prepare(
            "SELECT leases.uid, vms.uid FROM leases JOIN vms ON vms.id = leases.vm AND vms.lease = leases.id
             WHERE leases.ended IS NULL",
        )?;
        let mut vms = db.prepare("SELECT uid, version, updated FROM vms")?;
        Ok(Self {
            leases: leases.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?,
            vms: vms
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
                .collect::<Result<_, _>>()?,
        })
    }
}

/// Marks what somebody else may have used in a copy, of whatever schema. Gives the ids of the leases that it ended.
pub(super) fn settle(db: &Connection, present: &Present) -> rusqlite::Result<Vec<String>> {
    let now = Timestamp::now().as_microsecond();
    let preempts = exists(db, "SELECT 1 FROM pragma_table_info('vms') WHERE name = 'suspended'")?;
    let tells = exists(db, "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'events'")?;
    let reset = format!(
        "UPDATE vms SET availability = 'idle', lease = NULL, pending = 'reset', clean = 0, {} updated = ?,
            version = version + 1 WHERE id = ?",
        if preempts { "hot = 0, suspended = 0," } else { "" }
    );

    let mut ended = Vec::new();
    for lease in live_leases(db)? {
        if present.leases.contains(&(lease.uid, lease.vm_uid)) {
            continue;
        }
        let why = format!(
            "the store was restored from a copy, and vm {} may have had another holder since it was taken",
            lease.vm
        );
        db.execute(
            "UPDATE leases SET ended = ?, end_reason = ?, ended_at = ? WHERE id = ?",
            params![EndedAs::Revoked.as_str(), why, now, lease.id],
        )?;
        db.execute(&reset, params![now, lease.vm])?;
        if tells {
            db.execute(
                "INSERT INTO events (revision, at, kind, vm, pool, lease, ended, cause, actor, duration)
                 VALUES ((SELECT coalesce(max(revision), 0) + 1 FROM events), ?, ?, ?, ?, ?, ?, ?, '', ?)",
                params![
                    now,
                    EventKind::LeaseEnded.as_str(),
                    lease.vm,
                    lease.pool,
                    lease.id,
                    EndedAs::Revoked.as_str(),
                    why,
                    now.saturating_sub(lease.created).max(0),
                ],
            )?;
        }
        ended.push(lease.id);
    }

    if exists(db, "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'agents'")? {
        // Epochs of claims that were given out since the copy must not come again: a worker of then would pass for one of
        // now. The time is beyond all that were counted, also those after an earlier restore of the same copy.
        db.execute(
            "UPDATE agents SET version = version + 1,
                row = json_set(row, '$.epoch', max(json_extract(row, '$.epoch') + 1, ?))
             WHERE status NOT IN ('completed', 'failed', 'cancelled') AND NOT EXISTS (
                SELECT 1 FROM leases WHERE leases.id = json_extract(row, '$.claim.lease') AND leases.ended IS NULL)",
            [now],
        )?;
    }

    // One in the making is ready in the copy's eyes as soon as it is found.
    let ready = if preempts { "clean OR hot" } else { "clean" };
    let free = format!(
        "SELECT id, uid, version, updated, {ready} FROM vms WHERE availability = 'idle' AND pending IS NULL
            AND ({ready} OR pool IS NOT NULL) AND state NOT IN ('error', 'deleting')"
    );
    let mut free = db.prepare(&free)?;
    let mut rows = free.query([])?;
    let mut used = Vec::new();
    while let Some(row) = rows.next()? {
        let (id, seen): (String, _) = (row.get(0)?, (row.get(1)?, row.get(2)?, row.get(3)?));
        if row.get(4)? || !present.vms.contains(&seen) {
            used.push(id);
        }
    }
    for id in used {
        db.execute(&reset, params![now, id])?;
    }
    Ok(ended)
}

struct LiveLease {
    id: String,
    uid: String,
    vm: String,
    vm_uid: String,
    pool: String,
    created: i64,
}

/// Leases whose VM knows them; the others are ended by the next start.
fn live_leases(db: &Connection) -> rusqlite::Result<Vec<LiveLease>> {
    let mut leases = db.prepare(
        "SELECT leases.id, leases.uid, vms.id, vms.uid, leases.pool, leases.created
         FROM leases JOIN vms ON vms.id = leases.vm AND vms.lease = leases.id
         WHERE leases.ended IS NULL ORDER BY leases.id",
    )?;
    let read = |row: &rusqlite::Row<'_>| {
        Ok(LiveLease {
            id: row.get(0)?,
            uid: row.get(1)?,
            vm: row.get(2)?,
            vm_uid: row.get(3)?,
            pool: row.get(4)?,
            created: row.get(5)?,
        })
    };
    leases.query_map([], read)?.collect()
}

fn exists(db: &Connection, sql: &str) -> rusqlite::Result<bool> {
    db.query_row(&format!("SELECT EXISTS ({sql})"), [], |row| row.get(0))
}
