-- Plain SQL that SQLite and PostgreSQL both read. Times are nanoseconds since 1970, UTC.

-- +goose Up
CREATE TABLE api_keys (
    -- Hex SHA-256 of the key; the key itself is nowhere.
    hash       TEXT   NOT NULL PRIMARY KEY,
    name       TEXT   NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE sandboxes (
    id             TEXT    NOT NULL PRIMARY KEY,
    template       TEXT    NOT NULL,
    agent          TEXT    NOT NULL,
    state          TEXT    NOT NULL,
    -- A JSON object of strings.
    metadata       TEXT    NOT NULL,
    created_at     BIGINT  NOT NULL,
    started_at     BIGINT  NOT NULL,
    end_at         BIGINT  NOT NULL,
    -- What happens at end_at: kill or pause.
    on_timeout     TEXT    NOT NULL,
    allow_internet BOOLEAN NOT NULL,
    vcpus          BIGINT  NOT NULL,
    memory_mib     BIGINT  NOT NULL,
    disk_mib       BIGINT  NOT NULL,
    envd_version   TEXT    NOT NULL,
    -- Counts the changes of the row.
    version        BIGINT  NOT NULL
);
CREATE INDEX sandboxes_by_start ON sandboxes (started_at, id);
CREATE INDEX sandboxes_by_agent ON sandboxes (agent);

-- +goose Down
DROP TABLE sandboxes;
DROP TABLE api_keys;
