-- Every statement of the catalog, by name. Lists travel as JSON arrays.

-- name: applied_messages
SELECT message_id FROM inbox WHERE message_id IN (SELECT value FROM json_each(:ids));

-- name: add_message
INSERT INTO inbox (message_id, applied_at) VALUES (:message_id, :applied_at);

-- name: forget_messages
DELETE FROM inbox WHERE applied_at < :before;

-- name: places
-- Everything that lies, or lay, at these paths or belongs to these files.
SELECT root, rel, file_key, sha256, dev, ino, size, mtime_ns, ctime_ns, present, seen_at FROM paths
WHERE rowid IN (
    SELECT paths.rowid FROM json_each(:paths) AS wanted
    JOIN paths ON paths.root = json_extract(wanted.value, '$[0]') AND paths.rel = json_extract(wanted.value, '$[1]')
    UNION
    SELECT paths.rowid FROM json_each(:keys) AS wanted JOIN paths ON paths.file_key = wanted.value
);

-- name: places_of_models
SELECT root, rel, file_key, sha256, dev, ino, size, mtime_ns, ctime_ns, present, seen_at FROM paths
WHERE sha256 IN (SELECT value FROM json_each(:sha256s)) AND present = 1;

-- name: places_of_root
SELECT root, rel, file_key, sha256, dev, ino, size, mtime_ns, ctime_ns, present, seen_at FROM paths
WHERE root = :root AND present = 1;

-- name: roots
SELECT DISTINCT root FROM paths WHERE present = 1;

-- name: entries
SELECT sha256, name, size, identity, created_at FROM models
WHERE sha256 IN (SELECT value FROM json_each(:sha256s));

-- name: put_model
INSERT INTO models (sha256, name, folded, size, identity, created_at)
VALUES (:sha256, :name, :folded, :size, :identity, :created_at)
ON CONFLICT (sha256) DO UPDATE SET name = excluded.name, folded = excluded.folded, identity = excluded.identity;

-- name: put_path
INSERT INTO paths (root, rel, folded, file_key, sha256, dev, ino, size, mtime_ns, ctime_ns, present, seen_at)
VALUES (:root, :rel, :folded, :file_key, :sha256, :dev, :ino, :size, :mtime_ns, :ctime_ns, :present, :seen_at)
ON CONFLICT (root, rel) DO UPDATE SET
    file_key = excluded.file_key, sha256 = excluded.sha256, dev = excluded.dev, ino = excluded.ino,
    size = excluded.size, mtime_ns = excluded.mtime_ns, ctime_ns = excluded.ctime_ns,
    present = excluded.present, seen_at = excluded.seen_at;

-- name: add_outgoing
INSERT INTO outbox (kind, tokens, payload, msg_id) VALUES (:kind, :tokens, :payload, :msg_id);

-- name: outgoing
SELECT id, kind, tokens, payload, msg_id FROM outbox ORDER BY id LIMIT :limit;

-- name: outgoing_by_msg_id
SELECT id FROM outbox WHERE msg_id = :msg_id;

-- name: delete_outgoing
DELETE FROM outbox WHERE id <= :id;

-- name: count_outgoing
SELECT count(*) FROM outbox;

-- name: meta
SELECT value FROM db_meta WHERE key = :key;

-- name: put_meta
INSERT INTO db_meta (key, value) VALUES (:key, :value) ON CONFLICT (key) DO UPDATE SET value = excluded.value;

-- name: models_named
-- Whoever could be meant: by name, by the name of a file it is at (or, with no file left, was at), by SHA-256 prefix.
WITH wanted (sha256) AS (
    SELECT models.sha256 FROM json_each(:folded) AS name JOIN models ON models.folded = name.value
    UNION
    SELECT paths.sha256 FROM json_each(:folded) AS name JOIN paths ON paths.folded = name.value
    WHERE paths.sha256 IS NOT NULL
    UNION
    SELECT models.sha256 FROM models WHERE :prefix <> '' AND models.sha256 BETWEEN :prefix AND :prefix || 'g'
)
SELECT models.sha256, name, size, identity, created_at, loadable,
    (SELECT json_group_array(json_array(root, rel, present)) FROM paths WHERE paths.sha256 = models.sha256) AS paths
FROM wanted JOIN models ON models.sha256 = wanted.sha256
ORDER BY models.folded, models.sha256;

-- name: usable_models
-- Checkpoints that can be loaded and have a file, by name.
SELECT sha256, name, size, identity, created_at, loadable,
    (SELECT json_group_array(json_array(root, rel, present)) FROM paths WHERE paths.sha256 = models.sha256) AS paths
FROM models
WHERE loadable
    AND EXISTS (SELECT 1 FROM paths WHERE paths.sha256 = models.sha256 AND present = 1)
ORDER BY folded, sha256 LIMIT :limit;

-- name: models
SELECT sha256, name, size, identity, created_at, loadable,
    (SELECT json_group_array(json_array(root, rel, present)) FROM paths WHERE paths.sha256 = models.sha256) AS paths
FROM models
WHERE (:kind = '' OR kind = :kind)
    AND (:missing OR EXISTS (SELECT 1 FROM paths WHERE paths.sha256 = models.sha256 AND present = 1))
    AND (:after = '' OR (folded, sha256) > (SELECT folded, sha256 FROM models WHERE sha256 = :after))
ORDER BY folded, sha256
LIMIT :limit;
