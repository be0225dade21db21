-- The next agent of one pool, however many of other pools wait before it. The last two columns are always the same here;
-- without them each row would be read to see that.
CREATE INDEX agents_to_run_in_pool ON agents (workflow, pool, rank, number, not_before, status, claimed)
    WHERE status = 'pending' AND NOT claimed;
