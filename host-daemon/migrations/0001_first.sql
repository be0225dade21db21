-- Times are microseconds since 1970 (UTC), durations microseconds, uids 32 hexadecimal digits.
-- `version` grows with every change of a row and is its etag.

CREATE TABLE templates (
    id                 TEXT PRIMARY KEY,
    uid                TEXT NOT NULL UNIQUE,
    display_name       TEXT NOT NULL,
    spec               TEXT NOT NULL,              -- JSON, model::template::TemplateSpec
    installed_software TEXT NOT NULL,              -- JSON list
    rdp_port           INTEGER NOT NULL,
    state              TEXT NOT NULL CHECK (state IN ('preparing', 'ready', 'deleting')),
    disk_sha256        TEXT NOT NULL,
    disk_size_bytes    INTEGER NOT NULL,
    clone_method       TEXT CHECK (clone_method IN ('fork', 'restore', 'boot')),
    os                 TEXT NOT NULL,
    agent_version      TEXT NOT NULL,
    created            INTEGER NOT NULL,
    updated            INTEGER NOT NULL,
    version            INTEGER NOT NULL
) STRICT;

CREATE TABLE pools (
    id           TEXT PRIMARY KEY,
    uid          TEXT NOT NULL UNIQUE,
    display_name TEXT NOT NULL,
    template     TEXT NOT NULL REFERENCES templates (id),
    desired      INTEGER NOT NULL,
    warm         INTEGER,
    max_per_host INTEGER NOT NULL,
    default_ttl  INTEGER NOT NULL,
    max_ttl      INTEGER NOT NULL,
    next_number  INTEGER NOT NULL DEFAULT 0,        -- of its next VM; never goes back, so names are not reused
    deleting     INTEGER NOT NULL,
    created      INTEGER NOT NULL,
    updated      INTEGER NOT NULL,
    version      INTEGER NOT NULL
) STRICT;
CREATE INDEX pools_by_template ON pools (template);

CREATE TABLE vms (
    id           TEXT PRIMARY KEY,
    uid          TEXT NOT NULL UNIQUE,
    template     TEXT NOT NULL REFERENCES templates (id),
    pool         TEXT REFERENCES pools (id),
    forked_from  TEXT,
    state        TEXT NOT NULL,
    state_reason TEXT NOT NULL,
    state_since  INTEGER NOT NULL,
    availability TEXT NOT NULL CHECK (availability IN ('idle', 'leased', 'quarantined')),
    lease        TEXT,
    pending      TEXT CHECK (pending IN ('reset', 'save', 'delete')),
    clean        INTEGER NOT NULL,
    epoch        INTEGER NOT NULL,
    ip_address   TEXT NOT NULL,
    memory_mb    INTEGER NOT NULL,
    cpu_count    INTEGER NOT NULL,
    gpu          INTEGER NOT NULL,
    rdp_port     INTEGER NOT NULL,
    created      INTEGER NOT NULL,
    last_resumed INTEGER,
    updated      INTEGER NOT NULL,
    version      INTEGER NOT NULL,
    CHECK ((availability = 'leased') = (lease IS NOT NULL))
) STRICT;
CREATE INDEX vms_by_pool ON vms (pool, id);
CREATE INDEX vms_by_template ON vms (template);

CREATE TABLE leases (
    id         TEXT PRIMARY KEY,
    uid        TEXT NOT NULL UNIQUE,
    vm         TEXT NOT NULL,                       -- may be gone when the lease has ended
    pool       TEXT NOT NULL,
    holder     TEXT NOT NULL,
    ended      TEXT CHECK (ended IN ('released', 'expired', 'vm_lost', 'revoked')),
    end_reason TEXT NOT NULL,
    ttl        INTEGER NOT NULL,
    expires    INTEGER NOT NULL,
    receipt    TEXT,                                -- JSON, model::lease::Receipt
    purpose    TEXT NOT NULL,
    created    INTEGER NOT NULL,
    ended_at   INTEGER
) STRICT;
-- A VM has at most one live lease, whatever the code above thinks.
CREATE UNIQUE INDEX leases_live ON leases (vm) WHERE ended IS NULL;
CREATE INDEX leases_by_expiry ON leases (expires) WHERE ended IS NULL;
CREATE INDEX leases_by_pool ON leases (pool, id);
CREATE INDEX leases_ended ON leases (ended_at) WHERE ended IS NOT NULL;

CREATE TABLE checkpoints (
    vm          TEXT NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    id          TEXT NOT NULL,
    description TEXT NOT NULL,
    PRIMARY KEY (vm, id)
) STRICT;

CREATE TABLE operations (
    id       TEXT PRIMARY KEY,
    template TEXT NOT NULL,
    phase    TEXT NOT NULL,
    outcome  TEXT CHECK (outcome IN ('ready', 'failed', 'cancelled')),
    reason   TEXT NOT NULL,
    message  TEXT NOT NULL,
    created  INTEGER NOT NULL,
    updated  INTEGER NOT NULL
) STRICT;

-- Answers to requests that carried a request id, so that a repeat gives the first answer.
CREATE TABLE requests (
    id          TEXT PRIMARY KEY,
    fingerprint TEXT NOT NULL,
    resource    TEXT NOT NULL,
    created     INTEGER NOT NULL
) STRICT;
CREATE INDEX requests_by_age ON requests (created);
