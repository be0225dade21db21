-- Agents: tasks that run on a desktop. What lists and queues look for has columns; the rest is in `row`, and what is large
-- and never changes is apart from it, so that a heartbeat writes little.
CREATE TABLE agents (
    number     INTEGER PRIMARY KEY AUTOINCREMENT,   -- in the order they were submitted
    id         TEXT NOT NULL UNIQUE,
    uid        TEXT NOT NULL UNIQUE,
    pool       TEXT NOT NULL,                       -- may be gone
    workflow   TEXT NOT NULL,
    status     TEXT NOT NULL
        CHECK (status IN ('pending', 'scheduled', 'running', 'completed', 'failed', 'cancelled')),
    rank       INTEGER NOT NULL,                    -- lower ones are served earlier; see model::agent
    not_before INTEGER NOT NULL,                    -- of the next attempt
    queue_end  INTEGER,                             -- when it fails for want of a first attempt
    shots_from INTEGER,                             -- when the oldest of its pictures was left
    claimed    INTEGER NOT NULL,                    -- somebody has it, or its VM is not given back yet
    updated    INTEGER NOT NULL,
    ended      INTEGER,
    version    INTEGER NOT NULL,
    row        TEXT NOT NULL,                       -- JSON, model::agent::Agent without the two below
    input      TEXT NOT NULL,                       -- JSON
    output     TEXT NOT NULL                        -- JSON, or nothing
) STRICT;
CREATE INDEX agents_to_run ON agents (workflow, rank, number) WHERE status = 'pending' AND NOT claimed;
CREATE INDEX agents_claimed ON agents (number) WHERE claimed;
CREATE INDEX agents_queue_end ON agents (queue_end) WHERE queue_end IS NOT NULL;
CREATE INDEX agents_shots_from ON agents (shots_from) WHERE shots_from IS NOT NULL;
CREATE INDEX agents_by_pool ON agents (pool, number);
CREATE INDEX agents_ended ON agents (ended) WHERE ended IS NOT NULL;

-- What agents wrote, and what happened to them.
CREATE TABLE agent_logs (
    agent    INTEGER NOT NULL REFERENCES agents (number) ON DELETE CASCADE,
    sequence INTEGER NOT NULL,
    at       INTEGER NOT NULL,
    source   TEXT NOT NULL CHECK (source IN ('daemon', 'worker', 'stderr')),
    epoch    INTEGER NOT NULL,
    text     TEXT NOT NULL,
    PRIMARY KEY (agent, sequence)
) STRICT, WITHOUT ROWID;

-- Events may be about agents.
ALTER TABLE events ADD COLUMN agent TEXT;
