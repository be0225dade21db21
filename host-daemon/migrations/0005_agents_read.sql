-- Agents are looked for by workflow, status and place in the queue without a look at their rows, which may be large.
-- The last two columns are always the same here; without them each row would be read to see that.
DROP INDEX agents_to_run;
CREATE INDEX agents_to_run ON agents (workflow, rank, number, not_before, pool, status, claimed)
    WHERE status = 'pending' AND NOT claimed;
CREATE INDEX agents_by_workflow ON agents (workflow, number);
CREATE INDEX agents_by_status ON agents (status, number);

-- The wait for another attempt has an end too. Where nobody noted when it began, it begins now.
UPDATE agents
SET row = json_set(row, '$.waiting_since', CAST(strftime('%s', 'now') AS INTEGER) * 1000000),
    queue_end = (CAST(strftime('%s', 'now') AS INTEGER) + json_extract(row, '$.spec.queue_timeout.secs')) * 1000000
WHERE status = 'pending' AND queue_end IS NULL;
