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
    UNION
    SELECT digests.sha256 FROM digests WHERE :prefix <> '' AND digest = :prefix
)
SELECT m.sha256, name, size, identity, created_at, loadable, lying, details, tags, digests, pictures
FROM wanted JOIN whole_models AS m ON m.sha256 = wanted.sha256
ORDER BY m.folded, m.sha256;

-- name: usable_models
-- Checkpoints that can be loaded and have a file, by name.
SELECT sha256, name, size, identity, created_at, loadable, lying, details, tags, digests, pictures
FROM whole_models AS models
WHERE loadable
    AND EXISTS (SELECT 1 FROM paths WHERE paths.sha256 = models.sha256 AND present = 1)
ORDER BY folded, sha256 LIMIT :limit;

-- name: models
SELECT sha256, name, size, identity, created_at, loadable, lying, details, tags, digests, pictures
FROM whole_models AS models
WHERE (:kind = '' OR kind = :kind)
    AND (:missing OR EXISTS (SELECT 1 FROM paths WHERE paths.sha256 = models.sha256 AND present = 1))
    AND (:after = '' OR (folded, sha256) > (SELECT folded, sha256 FROM models WHERE sha256 = :after))
ORDER BY folded, sha256
LIMIT :limit;

-- name: changes
SELECT op, tbl, content FROM temp.changes ORDER BY n;

-- name: forget_changes
DELETE FROM temp.changes;

-- name: touch_models
-- The models whose words may be others than those that are searched.
INSERT INTO temp.touched
SELECT json_extract(content, '$.sha256') FROM temp.changes WHERE tbl IN ('models', 'descriptions', 'model_tags')
UNION
SELECT model_tags.sha256 FROM temp.changes JOIN model_tags ON tag_id = json_extract(content, '$.id') WHERE tbl = 'tags';

-- name: forget_touched
DELETE FROM temp.touched;

-- name: unsearch
DELETE FROM search WHERE rowid IN (SELECT id FROM searched JOIN temp.touched USING (sha256));

-- name: number_searched
INSERT INTO searched (sha256)
SELECT sha256 FROM temp.touched WHERE sha256 IN (SELECT sha256 FROM models) ON CONFLICT DO NOTHING;

-- name: search
INSERT INTO search (rowid, name, tags, words, description)
SELECT id, name || ' ' || coalesce(json_extract(details, '$.title'), ''), tags,
    coalesce(json_extract(details, '$.trigger_words'), '') || ' ' || json_extract(identity, '$.trigger_words'),
    coalesce(json_extract(details, '$.description'), '') || ' ' || coalesce(json_extract(details, '$.notes'), '')
FROM temp.touched JOIN searched USING (sha256) JOIN whole_models USING (sha256);

-- name: number_searched_outputs
INSERT INTO searched_outputs (job, n)
SELECT json_extract(content, '$.job'), json_extract(content, '$.n') FROM temp.changes
WHERE tbl = 'outputs' AND op = 'put' ON CONFLICT DO NOTHING;

-- name: unsearch_outputs
DELETE FROM search_outputs WHERE rowid IN (
    SELECT s.id FROM temp.changes
    JOIN searched_outputs AS s ON s.job = json_extract(content, '$.job') AND s.n = json_extract(content, '$.n')
    WHERE tbl = 'outputs' AND op = 'drop'
);

-- name: search_outputs
INSERT OR REPLACE INTO search_outputs (rowid, infotext)
SELECT searched_outputs.id, outputs.infotext FROM temp.changes
JOIN outputs ON outputs.job = json_extract(content, '$.job') AND outputs.n = json_extract(content, '$.n')
JOIN searched_outputs ON searched_outputs.job = outputs.job AND searched_outputs.n = outputs.n
WHERE tbl = 'outputs' AND op = 'put';

-- name: put_digest
INSERT INTO digests (sha256, algorithm, digest) SELECT :sha256, :algorithm, :digest
WHERE EXISTS (SELECT 1 FROM models WHERE sha256 = :sha256)
ON CONFLICT (sha256, algorithm) DO UPDATE SET digest = excluded.digest;

-- name: model_name
SELECT name FROM models WHERE sha256 = :sha256;

-- name: description
SELECT details FROM descriptions WHERE sha256 = :sha256 AND layer = :layer;

-- name: put_description
INSERT INTO descriptions (sha256, layer, details) VALUES (:sha256, :layer, :details)
ON CONFLICT (sha256, layer) DO UPDATE SET details = excluded.details;

-- name: drop_description
DELETE FROM descriptions WHERE sha256 = :sha256 AND layer = :layer;

-- name: tags_named
SELECT id, name FROM tags WHERE name IN (SELECT value FROM json_each(:names));

-- name: add_tag
INSERT INTO tags (id, name, color, created_at) VALUES (:id, :name, :color, :created_at) RETURNING id;

-- name: tags_of
SELECT tags.name FROM model_tags JOIN tags ON tags.id = tag_id WHERE model_tags.sha256 = :sha256 ORDER BY tags.name;

-- name: add_model_tag
INSERT INTO model_tags (sha256, tag_id) VALUES (:sha256, :tag_id) ON CONFLICT DO NOTHING;

-- name: has_image
SELECT 1 FROM images WHERE sha256 = :sha256 AND source = :source;

-- name: next_number
-- The number that a new picture of a model gets; the next one gets another.
UPDATE models SET numbered = numbered + 1 WHERE sha256 = :sha256 RETURNING numbered - 1;

-- name: add_image
INSERT INTO images
    (sha256, number, seq, source, origin, state, original, width, height, bytes, error, created_at)
VALUES (
    :sha256, :number, (SELECT count(*) FROM images WHERE sha256 = :sha256), :source, :origin, 'waiting', :original,
    0, 0, 0, '', :created_at
);

-- name: image_state
SELECT state, original FROM images WHERE sha256 = :sha256 AND number = :number;

-- name: image_ready
UPDATE images SET state = 'ready', original = '', error = '', width = :width, height = :height, bytes = :bytes
WHERE sha256 = :sha256 AND number = :number;

-- name: image_failed
UPDATE images SET state = 'failed', error = :error WHERE sha256 = :sha256 AND number = :number AND state = 'waiting';

-- name: numbers_of
SELECT number FROM images WHERE sha256 = :sha256 AND state = 'ready' ORDER BY seq;

-- name: images_waiting
-- Pictures to be encoded, in the order in which they came.
SELECT sha256, number, original, source FROM images WHERE state = 'waiting' ORDER BY created_at, sha256, number
LIMIT :limit;

-- name: add_output
INSERT INTO outputs (job, n, file, digest, width, height, bytes, seed, model, infotext, created_at)
VALUES (:job, :n, :file, :digest, :width, :height, :bytes, :seed, :model, :infotext, :created_at)
ON CONFLICT DO NOTHING;
