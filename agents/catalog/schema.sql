-- The catalog's history of shapes. Each section is one forward migration: it is applied with its row in `migrations` in
-- one transaction, once, and never edited after a release. A new shape is a new section at the end.

-- version: 1

CREATE TABLE migrations (
    version INTEGER PRIMARY KEY CHECK (version > 0),
    applied_at REAL NOT NULL
) STRICT;

CREATE TABLE db_meta (
    key TEXT PRIMARY KEY CHECK (key <> ''),
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- One content. A model is never deleted when its files go: everything that will hang on it stays.
-- `identity` is schemas.files.Identity as JSON; what is filtered by is generated from it, so that the two can't differ.
-- `folded` is the name NFC-normalised and case-folded, for names typed by people.
CREATE TABLE models (
    sha256 TEXT PRIMARY KEY CHECK (length(sha256) = 64 AND sha256 NOT GLOB '*[^0-9a-f]*'),
    name TEXT NOT NULL CHECK (name <> ''),
    folded TEXT NOT NULL CHECK (folded <> ''),
    size INTEGER NOT NULL CHECK (size >= 0),
    identity TEXT NOT NULL CHECK (json_valid(identity)),
    created_at REAL NOT NULL,
    kind TEXT NOT NULL GENERATED ALWAYS AS (json_extract(identity, '$.kind')) VIRTUAL,
    family TEXT NOT NULL GENERATED ALWAYS AS (json_extract(identity, '$.family')) VIRTUAL,
    loadable INTEGER NOT NULL GENERATED ALWAYS AS (
        json_extract(identity, '$.kind') = 'checkpoint'
        AND NOT json_extract(identity, '$.unsafe')
        AND json_extract(identity, '$.problem') = ''
    ) VIRTUAL
) STRICT, WITHOUT ROWID;

CREATE INDEX models_by_folded ON models (folded);
CREATE INDEX models_by_kind ON models (kind, family);

-- One path and what lies there. `present` 0: the file is gone, and `sha256` is what it held last. `present` 1 without
-- `sha256`: something lies there that is not hashed yet. The numbers are schemas.files.Stat; dev and ino are text because
-- some file systems use all 64 bits. `seen_at` is the watcher's time of the last fact applied to this path: facts that
-- it overtook change nothing. `folded` is the file name without its extension, NFC-normalised and case-folded.
CREATE TABLE paths (
    root TEXT NOT NULL CHECK (root <> '' AND root NOT GLOB '*[^a-z0-9_-]*'),
    rel TEXT NOT NULL CHECK (
        rel <> ''
        AND instr(rel, char(0)) = 0
        AND '/' || rel || '/' NOT GLOB '*//*'
        AND '/' || rel || '/' NOT GLOB '*/./*'
        AND '/' || rel || '/' NOT GLOB '*/../*'
    ),
    folded TEXT NOT NULL CHECK (folded <> ''),
    file_key TEXT NOT NULL CHECK (file_key <> ''),
    sha256 TEXT REFERENCES models (sha256) ON DELETE RESTRICT,
    dev TEXT NOT NULL CHECK (dev <> ''),
    ino TEXT NOT NULL CHECK (ino <> ''),
    size INTEGER NOT NULL CHECK (size >= 0),
    mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL,
    present INTEGER NOT NULL CHECK (present IN (0, 1)),
    seen_at REAL NOT NULL,
    UNIQUE (root, rel)
) STRICT;

CREATE INDEX paths_by_key ON paths (file_key);
CREATE INDEX paths_by_sha256 ON paths (sha256, present);
CREATE INDEX paths_by_folded ON paths (folded);

-- Messages whose effect is in this database: written in the effect's own transaction.
CREATE TABLE inbox (
    message_id TEXT PRIMARY KEY CHECK (message_id <> ''),
    applied_at REAL NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX inbox_by_applied_at ON inbox (applied_at);

-- Messages still to be published, in the order of `id` (never given twice, even after the last row is deleted).
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL CHECK (kind <> ''),
    tokens TEXT NOT NULL CHECK (json_valid(tokens) AND json_type(tokens) = 'object'),
    payload TEXT NOT NULL CHECK (json_valid(payload)),
    msg_id TEXT NOT NULL UNIQUE CHECK (msg_id <> '')
) STRICT;
