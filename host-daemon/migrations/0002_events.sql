-- What changed, written with the change itself. `revision` grows by one with each event and is never used again: pruning
-- keeps the newest row. No other index: this is the table that is written most, and reads go by revision.
CREATE TABLE events (
    revision   INTEGER PRIMARY KEY,
    at         INTEGER NOT NULL,
    kind       TEXT NOT NULL,                       -- model::event::EventKind
    vm         TEXT,
    pool       TEXT,
    lease      TEXT,
    template   TEXT,
    from_state TEXT,                                -- of a VM's move
    to_state   TEXT,
    ended      TEXT,                                -- how a lease ended
    cause      TEXT NOT NULL,
    actor      TEXT NOT NULL,                       -- name of the caller's token; empty: the daemon
    duration   INTEGER                              -- of what ended with this event
) STRICT;

-- Facts about the database itself. The incarnation tells revisions of this history from those of another one, e.g. of
-- the same database before it was restored from a backup.
CREATE TABLE facts (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;
INSERT INTO facts (name, value) VALUES ('incarnation', lower(hex(randomblob(4))));

-- Operations may be about other things than templates.
CREATE TABLE operations_of_all_kinds (
    id      TEXT PRIMARY KEY,
    kind    TEXT NOT NULL,
    subject TEXT NOT NULL,                          -- a template's id, or JSON, as the kind has it
    phase   TEXT NOT NULL,
    outcome TEXT CHECK (outcome IN ('ready', 'failed', 'cancelled')),
    reason  TEXT NOT NULL,
    message TEXT NOT NULL,
    created INTEGER NOT NULL,
    updated INTEGER NOT NULL
) STRICT;
INSERT INTO operations_of_all_kinds
    SELECT id, 'create_template', template, phase, outcome, reason, message, created, updated FROM operations;
DROP TABLE operations;
ALTER TABLE operations_of_all_kinds RENAME TO operations;

-- Lists of the live leases, newest first, of one pool or of all, without a look at the ended ones.
CREATE INDEX leases_live_by_id ON leases (id) WHERE ended IS NULL;
CREATE INDEX leases_live_by_pool ON leases (pool, id) WHERE ended IS NULL;
CREATE INDEX operations_by_age ON operations (updated) WHERE outcome IS NOT NULL;
