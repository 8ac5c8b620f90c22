-- The schema `_tidegate` of a shard. Idempotent: runs again on every version change.

-- One row a stream, at the TARGET shard: the position moves in the transaction that moves the rows.
CREATE TABLE IF NOT EXISTS _tidegate.stream (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    workflow_uuid uuid NOT NULL,
    workflow text NOT NULL,
    direction text NOT NULL CHECK (direction IN ('forward', 'reverse')),
    source_keyspace text NOT NULL,
    source_shard text NOT NULL,
    target_keyspace text NOT NULL,
    target_shard text NOT NULL,
    spec jsonb NOT NULL DEFAULT '{}',
    observed jsonb,                     -- the source's tables as the worker first saw them
    state text NOT NULL DEFAULT 'Init'
        CHECK (state IN ('Unknown', 'Init', 'Stopped', 'Copying', 'Running', 'Error')),
    message text NOT NULL DEFAULT '',
    epoch bigint NOT NULL DEFAULT 0,
    system_identifier text,             -- of the source server `lsn` belongs to
    timeline int,
    lsn pg_lsn,                         -- everything committed up to here is applied
    h_lsn pg_lsn,                       -- rows are exact once lsn >= h_lsn; null while copying
    stop_lsn pg_lsn,                    -- apply nothing that commits beyond
    hold_until timestamptz,             -- wait at stop_lsn (at once without one) until then
    source_commit_at timestamptz,       -- commit time of the last transaction applied
    heartbeat_at timestamptz,           -- when the source was last heard and the row renewed
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    rows_copied bigint NOT NULL DEFAULT 0,
    bytes_copied bigint NOT NULL DEFAULT 0,
    rows_applied bigint NOT NULL DEFAULT 0,
    backends int[] NOT NULL DEFAULT '{}', -- sessions of the worker, for a take-over to end
    accounts jsonb,                     -- table -> [net, expected] rows since the first H
    UNIQUE (workflow_uuid, direction, source_shard)
);

-- Chunks of the copy; a chunk is done in the transaction that brought its rows.
CREATE TABLE IF NOT EXISTS _tidegate.copy_state (
    stream_id bigint NOT NULL REFERENCES _tidegate.stream ON DELETE CASCADE,
    table_name text NOT NULL,
    chunk int NOT NULL,
    lower jsonb,
    upper jsonb,
    done_at timestamptz,
    rows bigint NOT NULL DEFAULT 0,
    bytes bigint NOT NULL DEFAULT 0,
    snapshot_lsn pg_lsn,
    PRIMARY KEY (stream_id, table_name, chunk)
);

CREATE TABLE IF NOT EXISTS _tidegate.table_copy (
    stream_id bigint NOT NULL REFERENCES _tidegate.stream ON DELETE CASCADE,
    table_name text NOT NULL,
    planned boolean NOT NULL DEFAULT false,
    est_rows bigint NOT NULL DEFAULT 0,
    est_bytes bigint NOT NULL DEFAULT 0,
    rows bigint NOT NULL DEFAULT 0,
    bytes bigint NOT NULL DEFAULT 0,
    phase text NOT NULL DEFAULT '',
    done_at timestamptz,
    PRIMARY KEY (stream_id, table_name)
);

-- Keys whose row must be read again from the source (a value was neither in a chunk nor in the log).
CREATE TABLE IF NOT EXISTS _tidegate.refetch (
    stream_id bigint NOT NULL REFERENCES _tidegate.stream ON DELETE CASCADE,
    table_name text NOT NULL,
    key text[] NOT NULL,
    entered_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (stream_id, table_name, key)
);

-- What waits for the copy (indexes) or for H (unique, exclusion and foreign-key constraints).
CREATE TABLE IF NOT EXISTS _tidegate.post_copy_action (
    workflow_uuid uuid NOT NULL,
    table_name text NOT NULL,
    ordinal int NOT NULL,
    phase text NOT NULL CHECK (phase IN ('after_copy', 'after_catchup')),
    ddl text NOT NULL,
    done_at timestamptz,
    PRIMARY KEY (workflow_uuid, table_name, ordinal)
);

-- What happened to a stream; a repeated message counts up instead of filling the table.
CREATE TABLE IF NOT EXISTS _tidegate.stream_log (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    stream_id bigint NOT NULL REFERENCES _tidegate.stream ON DELETE CASCADE,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    state text NOT NULL,
    message text NOT NULL,
    count bigint NOT NULL DEFAULT 1,
    code text NOT NULL DEFAULT ''       -- of the error that stopped the stream
);
CREATE INDEX IF NOT EXISTS stream_log_stream_id_id ON _tidegate.stream_log (stream_id, id);

-- At a SOURCE shard: the point of no return of a switch.
CREATE TABLE IF NOT EXISTS _tidegate.journal (
    workflow_uuid uuid NOT NULL,
    direction text NOT NULL CHECK (direction IN ('forward', 'reverse')),
    ordinal int NOT NULL DEFAULT 1,
    body jsonb NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (workflow_uuid, direction, ordinal)
);
