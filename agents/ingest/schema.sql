-- The watcher's own table (data/files.sqlite3): what it saw, what it knows by hash, and what it has still to publish.
-- Device and inode numbers are unsigned in the system, signed here: the same 64 bits. Times are seconds of the wall clock.

-- version: 1
CREATE TABLE meta (
    instance TEXT NOT NULL                      -- 32 hex digits drawn when the table was made; begins every message id
) STRICT;

CREATE TABLE path (
    id INTEGER PRIMARY KEY AUTOINCREMENT,       -- never used twice: message ids are made of it
    root TEXT NOT NULL,
    rel TEXT NOT NULL,
    key TEXT NOT NULL,
    dev INTEGER NOT NULL,
    ino INTEGER NOT NULL,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL,
    links INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'settled', 'refused')),
    told INTEGER NOT NULL DEFAULT 0,            -- a fact of a file here was published, and not yet its end
    gone INTEGER NOT NULL DEFAULT 0,
    unmounted INTEGER NOT NULL DEFAULT 0,
    fingerprint TEXT NOT NULL DEFAULT '',
    reason TEXT NOT NULL DEFAULT '',            -- of a refusal
    error TEXT NOT NULL DEFAULT '',
    version INTEGER NOT NULL DEFAULT 1,
    changed_at REAL NOT NULL,
    UNIQUE (root, rel)
) STRICT;
CREATE INDEX path_by_content ON path (ino, size, mtime_ns, ctime_ns);

CREATE TABLE hash (
    dev INTEGER NOT NULL,
    ino INTEGER NOT NULL,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL,
    sha256 TEXT NOT NULL CHECK (length(sha256) = 64),
    identity TEXT NOT NULL,                     -- JSON
    hashed_at REAL NOT NULL,
    confirmed INTEGER NOT NULL DEFAULT 0,       -- an equal stat was seen two seconds later: no write hid in the clock's grain
    PRIMARY KEY (dev, ino, size, mtime_ns, ctime_ns)
) STRICT, WITHOUT ROWID;
CREATE INDEX hash_unconfirmed ON hash (hashed_at) WHERE NOT confirmed;

CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,       -- the order in which to publish it
    kind TEXT NOT NULL CHECK (kind IN ('settled', 'moved', 'removed', 'refused', 'hash')),
    message_id TEXT NOT NULL UNIQUE,
    payload TEXT NOT NULL                       -- JSON
) STRICT;

-- version: 2
CREATE TABLE described (                        -- what was published of a model's sidecars: of which content, and their mark
    root TEXT NOT NULL,
    rel TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    mark TEXT NOT NULL,
    PRIMARY KEY (root, rel)
) STRICT, WITHOUT ROWID;

ALTER TABLE outbox RENAME TO outbox_1;

CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,       -- the order in which to publish it
    kind TEXT NOT NULL CHECK (kind IN ('settled', 'moved', 'removed', 'refused', 'hash', 'described')),
    message_id TEXT NOT NULL UNIQUE,
    payload TEXT NOT NULL                       -- JSON
) STRICT;

INSERT INTO outbox SELECT * FROM outbox_1;

DROP TABLE outbox_1;
