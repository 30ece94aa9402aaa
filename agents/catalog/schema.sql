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

-- One content. A model is never deleted when its files go: everything that refers to it stays.
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

-- version: 2

-- How many numbers were given to pictures of a model: a number is in its files' names and is never given twice.
ALTER TABLE models ADD COLUMN numbered INTEGER NOT NULL DEFAULT 0 CHECK (numbered >= 0);

-- The description of a model, by layer: schemas.models.Details as JSON, without what is empty. Field by field, what was edited
-- here goes over what a legacy catalog had, and both over the files next to the model.
CREATE TABLE descriptions (
    sha256 TEXT NOT NULL REFERENCES models (sha256) ON DELETE CASCADE,
    layer TEXT NOT NULL CHECK (layer IN ('sidecar', 'import', 'user')),
    details TEXT NOT NULL CHECK (json_valid(details) AND json_type(details) = 'object'),
    PRIMARY KEY (sha256, layer)
) STRICT, WITHOUT ROWID;

-- The other digests of a content, where they were asked for, as other tools write them.
CREATE TABLE digests (
    sha256 TEXT NOT NULL REFERENCES models (sha256) ON DELETE CASCADE,
    algorithm TEXT NOT NULL CHECK (algorithm IN ('autov3', 'blake3', 'crc32')),
    digest TEXT NOT NULL CHECK (digest <> ''),
    PRIMARY KEY (sha256, algorithm)
) STRICT, WITHOUT ROWID;

CREATE INDEX digests_by_digest ON digests (digest);

-- Names are NFC-normalised and case-folded; ids of a legacy catalog are kept.
CREATE TABLE tags (
    id INTEGER PRIMARY KEY CHECK (id > 0),
    name TEXT NOT NULL UNIQUE CHECK (name <> '' AND trim(name) = name),
    color TEXT NOT NULL,
    created_at REAL NOT NULL
) STRICT;

CREATE TABLE model_tags (
    sha256 TEXT NOT NULL REFERENCES models (sha256) ON DELETE CASCADE,
    tag_id INTEGER NOT NULL REFERENCES tags (id) ON DELETE CASCADE,
    PRIMARY KEY (sha256, tag_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX model_tags_by_tag ON model_tags (tag_id);

-- Pictures of a model, in the order of `seq` (0, 1, 2, …). `source` is the SHA-256 of the original's bytes, `original` its
-- path in the data directory while it is needed: until the picture's three files are there, or for good when it can't be
-- encoded (`failed`, with the sentence `error`).
CREATE TABLE images (
    sha256 TEXT NOT NULL REFERENCES models (sha256) ON DELETE CASCADE,
    number INTEGER NOT NULL CHECK (number >= 0),
    seq INTEGER NOT NULL CHECK (seq >= 0),
    source TEXT NOT NULL CHECK (length(source) = 64 AND source NOT GLOB '*[^0-9a-f]*'),
    origin TEXT NOT NULL CHECK (origin IN ('sidecar', 'import', 'upload')),
    state TEXT NOT NULL CHECK (state IN ('waiting', 'ready', 'failed')),
    original TEXT NOT NULL CHECK ((original = '') = (state = 'ready')),
    width INTEGER NOT NULL CHECK (width >= 0),
    height INTEGER NOT NULL CHECK (height >= 0),
    bytes INTEGER NOT NULL CHECK (bytes >= 0),
    error TEXT NOT NULL CHECK ((error <> '') = (state = 'failed')),
    created_at REAL NOT NULL,
    PRIMARY KEY (sha256, number),
    UNIQUE (sha256, source),
    CHECK (state <> 'ready' OR (width > 0 AND height > 0 AND bytes > 0))
) STRICT, WITHOUT ROWID;

CREATE INDEX images_by_state ON images (state) WHERE state <> 'ready';

-- Models of a legacy catalog whose content is not known yet, and models found in the roots that nobody has hashed yet
-- (`origin` scan; their ids begin at 2^40). `path` is as it was written; `root` and `rel` are where that lies now, if below a
-- root. `legacy_id` is the id there, which is `id` too unless that was taken. `sha256` is the model that a promotion
-- would go to, or goes to (`promoting`, until its pictures are encoded).
CREATE TABLE pending_import (
    id INTEGER PRIMARY KEY CHECK (id > 0),
    legacy_id INTEGER,
    path TEXT NOT NULL UNIQUE CHECK (path <> ''),
    root TEXT,
    rel TEXT,
    folded TEXT NOT NULL CHECK (folded <> ''),
    name TEXT NOT NULL,
    size INTEGER CHECK (size >= 0),
    details TEXT NOT NULL CHECK (json_valid(details) AND json_type(details) = 'object'),
    origin TEXT NOT NULL CHECK (origin IN ('import', 'scan')),
    state TEXT NOT NULL CHECK (state IN ('waiting', 'conflict', 'promoting')),
    sha256 TEXT REFERENCES models (sha256) ON DELETE RESTRICT,
    created_at REAL NOT NULL,
    CHECK ((root IS NULL) = (rel IS NULL)),
    CHECK ((sha256 IS NULL) = (state = 'waiting'))
) STRICT;

CREATE INDEX pending_by_place ON pending_import (root, rel) WHERE rel IS NOT NULL;
CREATE INDEX pending_by_name ON pending_import (size, folded);
CREATE INDEX pending_by_sha256 ON pending_import (sha256) WHERE sha256 IS NOT NULL;

CREATE TABLE pending_model_tags (
    pending_id INTEGER NOT NULL REFERENCES pending_import (id) ON DELETE CASCADE,
    tag_id INTEGER NOT NULL REFERENCES tags (id) ON DELETE CASCADE,
    PRIMARY KEY (pending_id, tag_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX pending_model_tags_by_tag ON pending_model_tags (tag_id);

-- Originals kept in data/images/pending/<file>, in the order of `n`. `source` is the SHA-256 of the bytes.
CREATE TABLE pending_images (
    pending_id INTEGER NOT NULL REFERENCES pending_import (id) ON DELETE CASCADE,
    n INTEGER NOT NULL CHECK (n >= 0),
    file TEXT NOT NULL UNIQUE CHECK (file <> '' AND instr(file, '/') = 0),
    source TEXT NOT NULL CHECK (length(source) = 64 AND source NOT GLOB '*[^0-9a-f]*'),
    PRIMARY KEY (pending_id, n),
    UNIQUE (pending_id, source)
) STRICT, WITHOUT ROWID;

-- The gallery: every generated picture. `model` is the SHA-256 of its checkpoint, which need not be in this catalog.
CREATE TABLE outputs (
    job TEXT NOT NULL CHECK (length(job) = 32 AND job NOT GLOB '*[^0-9a-f]*'),
    n INTEGER NOT NULL CHECK (n >= 0),
    file TEXT NOT NULL UNIQUE CHECK (file <> ''),
    digest TEXT NOT NULL CHECK (length(digest) = 64),
    width INTEGER NOT NULL CHECK (width > 0),
    height INTEGER NOT NULL CHECK (height > 0),
    bytes INTEGER NOT NULL CHECK (bytes > 0),
    seed INTEGER NOT NULL,
    model TEXT NOT NULL,
    infotext TEXT NOT NULL,
    created_at REAL NOT NULL,
    PRIMARY KEY (job, n)
) STRICT, WITHOUT ROWID;

CREATE INDEX outputs_by_time ON outputs (created_at, job, n);

-- Imports of legacy catalogs: how far each has come, and what it found. Not content: a history of this file.
CREATE TABLE imports (
    id TEXT PRIMARY KEY CHECK (length(id) = 32),
    source TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('running', 'done', 'failed')),
    cursor TEXT NOT NULL CHECK (json_valid(cursor)),
    report TEXT NOT NULL CHECK (json_valid(report)),
    began_at REAL NOT NULL,
    ended_at REAL
) STRICT, WITHOUT ROWID;

-- Full-text search. Derived: written anew, within the same transaction, for every model and picture that it changes.
CREATE TABLE searched (
    id INTEGER PRIMARY KEY,
    sha256 TEXT NOT NULL UNIQUE REFERENCES models (sha256) ON DELETE CASCADE
) STRICT;

CREATE VIRTUAL TABLE search USING fts5 (
    name, tags, words, description, tokenize = "unicode61 remove_diacritics 2", prefix = '2 3'
);

CREATE TABLE searched_outputs (
    id INTEGER PRIMARY KEY,
    job TEXT NOT NULL,
    n INTEGER NOT NULL,
    UNIQUE (job, n)
) STRICT;

CREATE VIRTUAL TABLE search_outputs USING fts5 (infotext, tokenize = "unicode61 remove_diacritics 2", prefix = '2 3');

-- A model with everything that hangs on it, lists as JSON.
CREATE VIEW whole_models AS
SELECT models.*,
    (SELECT json_group_array(json_array(root, rel, present)) FROM paths WHERE paths.sha256 = models.sha256) AS lying,
    (
        SELECT json_patch(
            json_patch(
                coalesce(max(details) FILTER (WHERE layer = 'sidecar'), '{}'),
                coalesce(max(details) FILTER (WHERE layer = 'import'), '{}')
            ),
            coalesce(max(details) FILTER (WHERE layer = 'user'), '{}')
        )
        FROM descriptions WHERE descriptions.sha256 = models.sha256
    ) AS details,
    (
        SELECT json_group_array(name) FROM (
            SELECT tags.name FROM model_tags JOIN tags ON tags.id = tag_id
            WHERE model_tags.sha256 = models.sha256 ORDER BY tags.name
        )
    ) AS tags,
    (SELECT json_group_object(algorithm, digest) FROM digests WHERE digests.sha256 = models.sha256) AS digests,
    (SELECT count(*) FROM images WHERE images.sha256 = models.sha256 AND state = 'ready') AS pictures
FROM models;

-- version: 3

-- 1: the file is not there because its root or disk is away. The description of its content next to it still counts.
ALTER TABLE paths ADD COLUMN away INTEGER NOT NULL DEFAULT 0 CHECK (away IN (0, 1));

-- Who put the tag on: only what sidecars alone gave goes with them. (Of older rows nobody knows: they stay.)
ALTER TABLE model_tags ADD COLUMN origin TEXT NOT NULL DEFAULT 'user' CHECK (origin IN ('sidecar', 'import', 'user'));

-- What the files next to one path hold about the content there: schemas.files.Details, names of tags as they are kept,
-- pictures as [file name, SHA-256] best first, and sentences about what can't be used. A row stays when its path holds
-- something else, so that it counts again when the content is back; `stands`: it counts.
CREATE TABLE sidecars (
    sha256 TEXT NOT NULL REFERENCES models (sha256) ON DELETE CASCADE,
    root TEXT NOT NULL CHECK (root <> ''),
    rel TEXT NOT NULL CHECK (rel <> ''),
    stands INTEGER NOT NULL CHECK (stands IN (0, 1)),
    details TEXT NOT NULL CHECK (json_valid(details) AND json_type(details) = 'object'),
    tags TEXT NOT NULL CHECK (json_valid(tags) AND json_type(tags) = 'array'),
    pictures TEXT NOT NULL CHECK (json_valid(pictures) AND json_type(pictures) = 'array'),
    problems TEXT NOT NULL CHECK (json_valid(problems) AND json_type(problems) = 'array'),
    at REAL NOT NULL,
    PRIMARY KEY (sha256, root, rel)
) STRICT, WITHOUT ROWID;

-- What the user took off a model, which no sidecar and no import puts back: tags by name, pictures by the SHA-256 of
-- their originals.
CREATE TABLE refused_tags (
    sha256 TEXT NOT NULL REFERENCES models (sha256) ON DELETE CASCADE,
    name TEXT NOT NULL CHECK (name <> ''),
    PRIMARY KEY (sha256, name)
) STRICT, WITHOUT ROWID;

CREATE INDEX refused_tags_by_name ON refused_tags (name);

CREATE TABLE refused_pictures (
    sha256 TEXT NOT NULL REFERENCES models (sha256) ON DELETE CASCADE,
    source TEXT NOT NULL CHECK (length(source) = 64 AND source NOT GLOB '*[^0-9a-f]*'),
    PRIMARY KEY (sha256, source)
) STRICT, WITHOUT ROWID;

-- What a name of a tag in a sidecar means here: the name that the user gave to the tag since, or, when it is empty,
-- nothing: the user deleted that tag.
CREATE TABLE tag_names (
    name TEXT PRIMARY KEY CHECK (name <> ''),
    becomes TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX tag_names_by_becomes ON tag_names (becomes);

-- Who is described by what lies next to a path: asked of each path at which another content was found.
CREATE INDEX sidecars_by_path ON sidecars (root, rel);

-- version: 4

-- Generation jobs that have ended, each written once: `view` is schemas.jobs.JobView as JSON; what people look for is
-- generated from it. `at` is the place in lists: when the job came, as far as that is known.
CREATE TABLE jobs (
    id TEXT PRIMARY KEY CHECK (length(id) = 32 AND id NOT GLOB '*[^0-9a-f]*'),
    at REAL NOT NULL,
    view TEXT NOT NULL CHECK (json_valid(view) AND json_extract(view, '$.id') = id),
    status TEXT NOT NULL GENERATED ALWAYS AS (json_extract(view, '$.status')) VIRTUAL
        CHECK (status IN ('succeeded', 'failed', 'rejected', 'cancelled')),
    created_at REAL GENERATED ALWAYS AS (json_extract(view, '$.created_at')) VIRTUAL,
    started_at REAL GENERATED ALWAYS AS (json_extract(view, '$.started_at')) VIRTUAL,
    ended_at REAL GENERATED ALWAYS AS (json_extract(view, '$.ended_at')) VIRTUAL,
    attempts INTEGER NOT NULL GENERATED ALWAYS AS (json_extract(view, '$.attempts')) VIRTUAL,
    model TEXT GENERATED ALWAYS AS (
        coalesce(json_extract(view, '$.plan.model.name'), json_extract(view, '$.request.model'))
    ) VIRTUAL,
    prompt TEXT GENERATED ALWAYS AS (
        coalesce(json_extract(view, '$.plan.prompt'), json_extract(view, '$.request.prompt'))
    ) VIRTUAL,
    reason TEXT GENERATED ALWAYS AS (json_extract(view, '$.result.reason')) VIRTUAL,
    error TEXT GENERATED ALWAYS AS (json_extract(view, '$.result.error')) VIRTUAL
) STRICT;

CREATE INDEX jobs_by_time ON jobs (at, id, status);

CREATE VIRTUAL TABLE search_jobs USING fts5 (
    id UNINDEXED, words, tokenize = "unicode61 remove_diacritics 2", prefix = '2 3'
);
