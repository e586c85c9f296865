-- What becomes of a sandbox at its end and how it comes back, and snapshots that sandboxes start from.

-- +goose Up
ALTER TABLE sandboxes ADD COLUMN pause_files_only BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE sandboxes ADD COLUMN auto_resume BOOLEAN NOT NULL DEFAULT FALSE;
-- The life that it was created with, in nanoseconds; 0 where that is not known.
ALTER TABLE sandboxes ADD COLUMN timeout BIGINT NOT NULL DEFAULT 0;
ALTER TABLE sandboxes ADD COLUMN files_only BOOLEAN NOT NULL DEFAULT FALSE;

CREATE TABLE snapshots (
    -- What its agent calls it.
    id         TEXT   NOT NULL PRIMARY KEY,
    -- What users call it; empty where nobody has named it.
    name       TEXT   NOT NULL,
    tag        TEXT   NOT NULL,
    agent      TEXT   NOT NULL,
    -- Of which sandbox it was taken, and that one's template.
    sandbox_id TEXT   NOT NULL,
    template   TEXT   NOT NULL,
    created_at BIGINT NOT NULL,
    vcpus      BIGINT NOT NULL,
    memory_mib BIGINT NOT NULL,
    disk_mib   BIGINT NOT NULL,
    size_bytes BIGINT NOT NULL
);
CREATE UNIQUE INDEX snapshots_by_name ON snapshots (name, tag) WHERE name <> '';
CREATE INDEX snapshots_by_time ON snapshots (created_at, id);
CREATE INDEX snapshots_by_agent ON snapshots (agent);

-- +goose Down
DROP TABLE snapshots;
ALTER TABLE sandboxes DROP COLUMN files_only;
ALTER TABLE sandboxes DROP COLUMN timeout;
ALTER TABLE sandboxes DROP COLUMN auto_resume;
ALTER TABLE sandboxes DROP COLUMN pause_files_only;
