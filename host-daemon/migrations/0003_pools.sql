-- Options of pools, the queue's priorities, hot VMs, and leases that are preempted.

ALTER TABLE pools ADD COLUMN options TEXT NOT NULL DEFAULT '{}';     -- JSON, model::record::PoolOptions
ALTER TABLE pools ADD COLUMN paused INTEGER NOT NULL DEFAULT 0;

ALTER TABLE vms ADD COLUMN uses INTEGER NOT NULL DEFAULT 0;          -- leases it had
ALTER TABLE vms ADD COLUMN hot INTEGER NOT NULL DEFAULT 0;
ALTER TABLE vms ADD COLUMN suspended INTEGER NOT NULL DEFAULT 0;     -- its lease is preempted

ALTER TABLE leases ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;
ALTER TABLE leases ADD COLUMN suspended INTEGER;                     -- since when; its life stands still
ALTER TABLE leases ADD COLUMN suspend_reason TEXT NOT NULL DEFAULT '';

-- A preempted lease does not expire.
DROP INDEX leases_by_expiry;
CREATE INDEX leases_by_expiry ON leases (expires) WHERE ended IS NULL AND suspended IS NULL;
