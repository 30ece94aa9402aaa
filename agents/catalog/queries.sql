-- Every statement of the catalog, by name. Lists travel as JSON arrays.

-- name: applied_messages
SELECT message_id FROM inbox WHERE message_id IN (SELECT value FROM json_each(:ids));

-- name: add_message
INSERT INTO inbox (message_id, applied_at) VALUES (:message_id, :applied_at);

-- name: forget_messages
DELETE FROM inbox WHERE applied_at < :before;

-- name: places
-- Everything that lies, or lay, at these paths or belongs to these files.
SELECT root, rel, file_key, sha256, dev, ino, size, mtime_ns, ctime_ns, present, away, seen_at FROM paths
WHERE rowid IN (
    SELECT paths.rowid FROM json_each(:paths) AS wanted
    JOIN paths ON paths.root = json_extract(wanted.value, '$[0]') AND paths.rel = json_extract(wanted.value, '$[1]')
    UNION
    SELECT paths.rowid FROM json_each(:keys) AS wanted JOIN paths ON paths.file_key = wanted.value
);

-- name: places_of_models
SELECT root, rel, file_key, sha256, dev, ino, size, mtime_ns, ctime_ns, present, away, seen_at FROM paths
WHERE sha256 IN (SELECT value FROM json_each(:sha256s)) AND present = 1;

-- name: places_of_root
SELECT root, rel, file_key, sha256, dev, ino, size, mtime_ns, ctime_ns, present, away, seen_at FROM paths
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
INSERT INTO paths (root, rel, folded, file_key, sha256, dev, ino, size, mtime_ns, ctime_ns, present, away, seen_at)
VALUES (:root, :rel, :folded, :file_key, :sha256, :dev, :ino, :size, :mtime_ns, :ctime_ns, :present, :away, :seen_at)
ON CONFLICT (root, rel) DO UPDATE SET
    file_key = excluded.file_key, sha256 = excluded.sha256, dev = excluded.dev, ino = excluded.ino,
    size = excluded.size, mtime_ns = excluded.mtime_ns, ctime_ns = excluded.ctime_ns,
    present = excluded.present, away = excluded.away, seen_at = excluded.seen_at;

-- name: add_outgoing
INSERT INTO outbox (kind, tokens, payload, msg_id) VALUES (:kind, :tokens, :payload, :msg_id);

-- name: outgoing
SELECT id, kind, tokens, payload, msg_id FROM outbox ORDER BY id LIMIT :limit;

-- name: delete_outgoing
DELETE FROM outbox WHERE id <= :id;

-- name: delete_stored
DELETE FROM outbox WHERE id <= (SELECT id FROM outbox WHERE msg_id = :msg_id);

-- name: standing
-- Where the catalog is in its history, what of that is still to be published, the outbox's messages, ever and now, and the
-- ids of its last transactions.
SELECT
    (SELECT value FROM db_meta WHERE key = 'position'),
    (
        SELECT json_group_array(json_object(
            'id', msg_id, 'history', coalesce(payload ->> 'history', ''), 'number', coalesce(payload ->> 'number', 0),
            'after', coalesce(payload ->> 'after', '')
        )) FROM (SELECT msg_id, payload FROM outbox WHERE kind = 'catalog.changed' ORDER BY id)
    ),
    (SELECT seq FROM sqlite_sequence WHERE name = 'outbox'),
    (SELECT count(*) FROM outbox),
    (SELECT json_group_object(substr(key, 8), value) FROM db_meta WHERE key GLOB 'passed.*');

-- name: forget_unsent
-- Transactions that a new history makes superfluous: it begins with all that they made.
DELETE FROM outbox WHERE kind = 'catalog.changed';

-- name: forget_passed
-- The id of one transaction, or (with *) of all.
DELETE FROM db_meta WHERE key GLOB :key;

-- name: cursors
-- The sequences of the streams up to which facts are applied.
SELECT substr(key, 8), value FROM db_meta WHERE key GLOB 'cursor.*';

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

-- name: models_named_loosely
-- Of those whose own name is oddly spaced, or not ASCII: the ones that are called so but for that.
WITH names (sha256, folded) AS (
    SELECT sha256, folded FROM models UNION SELECT sha256, folded FROM paths WHERE sha256 IS NOT NULL
), wanted AS (
    SELECT DISTINCT sha256 FROM names
    WHERE (folded GLOB '*[^ -~]*' OR folded GLOB '*  *' OR folded GLOB '* ' OR folded GLOB ' *')
        AND loose(folded) IN (SELECT value FROM json_each(:loosely))
)
SELECT m.sha256, name, size, identity, created_at, loadable, lying, details, tags, digests, pictures
FROM wanted JOIN whole_models AS m ON m.sha256 = wanted.sha256
ORDER BY m.folded, m.sha256;

-- name: usable_models
-- Checkpoints that can be loaded and have a file, by name.
WITH chosen AS MATERIALIZED (  -- before anything is gathered about them
    SELECT sha256 FROM models
    WHERE sha256 IN (SELECT sha256 FROM paths WHERE present = 1 AND sha256 IS NOT NULL) AND loadable
    ORDER BY folded, sha256 LIMIT :limit
)
SELECT m.sha256, name, size, identity, created_at, loadable, lying, details, tags, digests, pictures
FROM chosen JOIN whole_models AS m USING (sha256)
ORDER BY folded, m.sha256;

-- name: models
WITH chosen AS MATERIALIZED (
    SELECT sha256 FROM models
    WHERE (:missing OR sha256 IN (SELECT sha256 FROM paths WHERE present = 1 AND sha256 IS NOT NULL))
        AND (:after = '' OR (folded, sha256) > (SELECT folded, sha256 FROM models WHERE sha256 = :after))
        AND (:kind = '' OR kind = :kind)
    ORDER BY folded, sha256 LIMIT :limit
)
SELECT m.sha256, name, size, identity, created_at, loadable, lying, details, tags, digests, pictures
FROM chosen JOIN whole_models AS m USING (sha256)
ORDER BY folded, m.sha256;

-- name: changes
-- The next changes after one: as many as make a piece, as JSON objects with commas between; the last one's number; and
-- how many are of outputs.
SELECT group_concat('{"op":"' || op || '","table":"' || tbl || '","row":' || content || '}', ','), max(n),
    total(tbl = 'outputs')
FROM (SELECT n, op, tbl, content FROM temp.changes WHERE n > :after ORDER BY n LIMIT :limit);

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
WITH described AS MATERIALIZED (
    SELECT id, name, identity, details, tags
    FROM temp.touched JOIN searched USING (sha256) JOIN whole_models USING (sha256)
)
INSERT INTO search (rowid, name, tags, words, description)
SELECT id, searchable(name) || ' ' || searchable_json(details -> '$.title'), searchable_json(tags),
    searchable_json(details -> '$.trigger_words') || ' ' || searchable_json(identity -> '$.trigger_words'),
    searchable_json(details -> '$.description') || ' ' || searchable_json(details -> '$.notes')
FROM described;

-- name: touch_every_model
INSERT INTO temp.touched SELECT sha256 FROM models;

-- name: search_every_output
INSERT OR REPLACE INTO search_outputs (rowid, infotext)
SELECT searched_outputs.id, searchable(infotext) FROM searched_outputs JOIN outputs USING (job, n);

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
SELECT searched_outputs.id, searchable(outputs.infotext) FROM temp.changes
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
-- What a sidecar gave is the user's, or an import's, from the moment that they put it on too.
INSERT INTO model_tags (sha256, tag_id, origin) VALUES (:sha256, :tag_id, :origin)
ON CONFLICT DO UPDATE SET origin = excluded.origin WHERE origin = 'sidecar';

-- name: tags_by_origin
SELECT tags.name, origin FROM model_tags JOIN tags ON tags.id = tag_id WHERE model_tags.sha256 = :sha256;

-- name: take_sidecar_tags
DELETE FROM model_tags
WHERE sha256 = :sha256 AND origin = 'sidecar'
    AND tag_id IN (SELECT id FROM tags WHERE name IN (SELECT value FROM json_each(:names)));

-- name: names_meant
-- Of these names in sidecars, those that mean something else here, and what.
SELECT name, becomes FROM tag_names WHERE name IN (SELECT value FROM json_each(:names));

-- name: refused_tags_of
SELECT name FROM refused_tags WHERE sha256 = :sha256;

-- name: refuse_tag
INSERT INTO refused_tags (sha256, name) VALUES (:sha256, :name) ON CONFLICT DO NOTHING;

-- name: allow_tags
DELETE FROM refused_tags WHERE sha256 = :sha256 AND name IN (SELECT value FROM json_each(:names));

-- name: refuse_tag_everywhere
-- The models that have a tag are those it is taken off.
INSERT INTO refused_tags (sha256, name) SELECT sha256, :name FROM model_tags WHERE tag_id = :id
ON CONFLICT DO NOTHING;

-- name: refuse_renamed
-- (Rows are put and dropped: the history names a row by its key, which must not change.)
INSERT INTO refused_tags (sha256, name) SELECT sha256, :name FROM refused_tags WHERE name = :before
ON CONFLICT DO NOTHING;

-- name: drop_refused
DELETE FROM refused_tags WHERE name = :name;

-- name: names_again
-- These names mean themselves again, where they meant nothing.
DELETE FROM tag_names WHERE becomes = '' AND name IN (SELECT value FROM json_each(:names));

-- name: rename_meant
UPDATE tag_names SET becomes = :becomes WHERE becomes = :before;

-- name: put_name_meant
INSERT INTO tag_names (name, becomes) VALUES (:name, :becomes)
ON CONFLICT (name) DO UPDATE SET becomes = excluded.becomes;

-- name: drop_name_meant
DELETE FROM tag_names WHERE name = :name;

-- name: refuse_replaced_tags
-- The tags of a model that a pending record goes over, and does not have itself.
INSERT INTO refused_tags (sha256, name) SELECT :sha256, tags.name
FROM model_tags JOIN tags ON tags.id = tag_id
WHERE model_tags.sha256 = :sha256
    AND tag_id NOT IN (SELECT mine.tag_id FROM pending_model_tags AS mine WHERE pending_id = :id)
ON CONFLICT DO NOTHING;

-- name: allow_tags_of_pending
DELETE FROM refused_tags WHERE sha256 = :sha256 AND name IN (
    SELECT tags.name FROM pending_model_tags JOIN tags ON tags.id = tag_id WHERE pending_id = :id
);

-- name: refused_pictures_of
SELECT source FROM refused_pictures WHERE sha256 = :sha256;

-- name: refuse_picture
INSERT INTO refused_pictures (sha256, source) VALUES (:sha256, :source) ON CONFLICT DO NOTHING;

-- name: allow_picture
DELETE FROM refused_pictures WHERE sha256 = :sha256 AND source = :source;

-- name: claim_image
-- A picture that a sidecar gave is somebody else's too.
UPDATE images SET origin = :origin WHERE sha256 = :sha256 AND source = :source AND origin = 'sidecar';

-- name: described_models
-- Those of these contents that are described, and those that are so next to one of these paths (root, rel): what is
-- found there decides whether that counts, also when it is another content.
SELECT sha256 FROM sidecars WHERE sha256 IN (SELECT value FROM json_each(:sha256s))
UNION SELECT s.sha256 FROM json_each(:paths) AS path
JOIN sidecars AS s ON s.root = json_extract(path.value, '$[0]') AND s.rel = json_extract(path.value, '$[1]')
ORDER BY 1;

-- name: sidecars_of
-- The sidecars next to the paths of a content, and what lies there now: the content itself, or nobody knows what.
SELECT s.root, s.rel, stands, details, tags, pictures, at, coalesce(present, 0) AS present, coalesce(away, 0) AS away,
    coalesce(paths.sha256 = s.sha256, 0) AS holds, paths.sha256 IS NULL AS is_open
FROM sidecars AS s LEFT JOIN paths ON paths.root = s.root AND paths.rel = s.rel
WHERE s.sha256 = :sha256 ORDER BY s.root, s.rel;

-- name: put_sidecar
INSERT INTO sidecars (sha256, root, rel, stands, details, tags, pictures, problems, at)
VALUES (:sha256, :root, :rel, 1, :details, :tags, :pictures, :problems, :at)
ON CONFLICT (sha256, root, rel) DO UPDATE SET
    stands = 1, details = excluded.details, tags = excluded.tags, pictures = excluded.pictures,
    problems = excluded.problems, at = excluded.at;

-- name: drop_sidecar
DELETE FROM sidecars WHERE sha256 = :sha256 AND root = :root AND rel = :rel;

-- name: copy_sidecar
INSERT INTO sidecars (sha256, root, rel, stands, details, tags, pictures, problems, at)
SELECT sha256, :root, :rel, stands, details, tags, pictures, '[]', at FROM sidecars
WHERE sha256 = :sha256 AND root = :old_root AND rel = :old_rel ON CONFLICT DO NOTHING;

-- name: let_sidecar_stand
-- (Originals of pictures that are shown nowhere are not kept: they come again with the next word about the path.)
UPDATE sidecars SET stands = :stands, pictures = iif(:stands, pictures, '[]')
WHERE sha256 = :sha256 AND root = :root AND rel = :rel;

-- name: sidecar_problems
SELECT s.root, s.rel, problem.value FROM sidecars AS s
JOIN paths ON paths.root = s.root AND paths.rel = s.rel AND paths.sha256 = s.sha256 AND present = 1,
    json_each(s.problems) AS problem
WHERE s.sha256 = :sha256 ORDER BY s.root, s.rel, problem.key LIMIT :limit;

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

-- name: image_source
SELECT original, source FROM images WHERE sha256 = :sha256 AND number = :number;

-- name: image_waiting
SELECT seq, source, origin, original, created_at FROM images
WHERE sha256 = :sha256 AND number = :number AND state = 'waiting';

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

-- name: layers_of
SELECT layer, details FROM descriptions WHERE sha256 = :sha256;

-- name: pending_of_files
-- Waiting records of files [root, rel, folded name, size, sha256]: by place, or, where that holds no file, by name and
-- size, or by the name alone where the record has no size.
SELECT p.id, p.path, json_extract(f.value, '$[4]') AS sha256, json_extract(f.value, '$[1]') AS rel, 'place' AS known_by
FROM json_each(:files) AS f
JOIN pending_import AS p ON p.root = json_extract(f.value, '$[0]') AND p.rel = json_extract(f.value, '$[1]')
WHERE p.state = 'waiting'
UNION ALL
SELECT p.id, p.path, json_extract(f.value, '$[4]'), json_extract(f.value, '$[1]'), 'size'
FROM json_each(:files) AS f
JOIN pending_import AS p ON p.folded = json_extract(f.value, '$[2]') AND p.size = json_extract(f.value, '$[3]')
WHERE p.state = 'waiting'
    AND NOT EXISTS (SELECT 1 FROM paths WHERE paths.root = p.root AND paths.rel = p.rel AND present = 1)
UNION ALL
SELECT p.id, p.path, json_extract(f.value, '$[4]'), json_extract(f.value, '$[1]'), 'name'
FROM json_each(:files) AS f JOIN pending_import AS p ON p.folded = json_extract(f.value, '$[2]') AND p.size IS NULL
WHERE p.state = 'waiting'
    AND NOT EXISTS (SELECT 1 FROM paths WHERE paths.root = p.root AND paths.rel = p.rel AND present = 1);

-- name: files_called
-- Files that lie there and are called so, without what follows the last dot.
SELECT root, rel, size, sha256 FROM paths
WHERE present = 1 AND folded IN (SELECT value FROM json_each(:folded));

-- name: hashed_files_pending
-- Hashed files that waiting records could be of, by path.
SELECT root, rel, size, sha256 FROM paths
WHERE present = 1 AND sha256 IS NOT NULL AND (root, rel) > (:root, :rel)
    AND (
        EXISTS (SELECT 1 FROM pending_import AS p WHERE p.root = paths.root AND p.rel = paths.rel AND state = 'waiting')
        OR EXISTS (
            SELECT 1 FROM pending_import AS p
            WHERE p.size = paths.size AND p.state = 'waiting' AND p.folded LIKE paths.folded || '%'
        )
        OR EXISTS (
            SELECT 1 FROM pending_import AS p
            WHERE p.size IS NULL AND p.state = 'waiting'
                AND p.folded >= paths.folded AND p.folded < paths.folded || '/'  -- the character after a dot
        )
    )
ORDER BY root, rel LIMIT :limit;

-- name: pending_details
SELECT path, details FROM pending_import WHERE id = :id;

-- name: pending_state
SELECT state, sha256 FROM pending_import WHERE id = :id;

-- name: record_to_match
SELECT root, rel, folded, size FROM pending_import WHERE id = :id;

-- name: unused_originals
-- Of these paths of pending originals, those that no record and no picture needs any more.
SELECT value FROM json_each(:originals)
WHERE NOT EXISTS (SELECT 1 FROM images WHERE original = value)
    AND NOT EXISTS (SELECT 1 FROM pending_images WHERE (:pending || '/' || file) = value);

-- name: pending_promoting
UPDATE pending_import SET state = 'promoting', sha256 = :sha256 WHERE id = :id;

-- name: pending_conflict
UPDATE pending_import SET state = 'conflict', sha256 = :sha256
WHERE id = :id AND (state <> 'conflict' OR sha256 <> :sha256) RETURNING id;

-- name: pending_done
-- Records promoted to these models whose pictures are all there, or can't be made.
SELECT id, path FROM pending_import AS p
WHERE state = 'promoting' AND sha256 IN (SELECT value FROM json_each(:sha256s)) AND NOT EXISTS (
    SELECT 1 FROM pending_images AS mine
    JOIN images ON images.sha256 = p.sha256 AND images.source = mine.source
    WHERE mine.pending_id = p.id AND images.state = 'waiting'
);

-- name: drop_pending
DELETE FROM pending_import WHERE id = :id;

-- name: untag_model
DELETE FROM model_tags WHERE sha256 = :sha256;

-- name: tags_of_pending
INSERT INTO model_tags (sha256, tag_id, origin) SELECT :sha256, tag_id, 'import'
FROM pending_model_tags JOIN tags ON tags.id = tag_id
WHERE pending_id = :id AND NOT EXISTS (SELECT 1 FROM refused_tags AS r WHERE r.sha256 = :sha256 AND r.name = tags.name)
ON CONFLICT DO UPDATE SET origin = 'import' WHERE origin = 'sidecar';

-- name: originals_used
SELECT original FROM images WHERE original <> ''
UNION ALL SELECT :pending || '/' || file FROM pending_images;

-- name: pictures_used
SELECT sha256, number FROM images;

-- name: pictures_of_pending
SELECT file, source FROM pending_images WHERE pending_id = :id ORDER BY n;

-- name: pending
SELECT id, legacy_id, path, root, rel, folded, name, size, details, origin, state, sha256,
    (
        SELECT json_group_array(tags.name) FROM pending_model_tags JOIN tags ON tags.id = tag_id WHERE pending_id = p.id
    ) AS tags,
    (SELECT count(*) FROM pending_images WHERE pending_id = p.id) AS images
FROM pending_import AS p WHERE id > :after ORDER BY id LIMIT :limit;

-- name: import_state
SELECT source, state, cursor, report, began_at, ended_at FROM imports WHERE id = :id;

-- name: put_import
INSERT INTO imports (id, source, state, cursor, report, began_at, ended_at)
VALUES (:id, :source, :state, :cursor, :report, :began_at, :ended_at)
ON CONFLICT (id) DO UPDATE SET
    state = excluded.state, cursor = excluded.cursor, report = excluded.report, ended_at = excluded.ended_at;

-- name: tags_met
SELECT id, name, color FROM tags
WHERE id IN (SELECT value FROM json_each(:ids)) OR name IN (SELECT value FROM json_each(:names));

-- name: every_tag
SELECT name, id FROM tags;

-- name: largest_tag
SELECT coalesce(max(id), 0) FROM tags;

-- name: color_tag
UPDATE tags SET color = :color WHERE id = :id;

-- name: models_met
-- Which of these contents are catalogued, and an import's earlier details of them.
SELECT models.sha256, coalesce(details, '{}') FROM json_each(:sha256s) AS wanted
JOIN models ON models.sha256 = wanted.value
LEFT JOIN descriptions ON descriptions.sha256 = models.sha256 AND layer = 'import';

-- name: import_models
-- Many rows in one step: a statement for each would wait for Python's lock, row by row. And neighbours first: their pages
-- are written together.
INSERT INTO models (sha256, name, folded, size, identity, created_at)
SELECT value ->> 'sha256', value ->> 'name', value ->> 'folded', value ->> 'size', value ->> 'identity',
    value ->> 'created_at'
FROM json_each(:rows) ORDER BY 1;

-- name: import_descriptions
INSERT INTO descriptions (sha256, layer, details) SELECT value ->> 'sha256', 'import', value ->> 'details'
FROM json_each(:rows) WHERE true ORDER BY 1 ON CONFLICT (sha256, layer) DO UPDATE SET details = excluded.details;

-- name: link_models
-- (A tag that was deleted meanwhile is on no model any more, and what the user took off stays off.)
INSERT INTO model_tags (sha256, tag_id, origin) SELECT json_extract(link.value, '$[0]'), tags.id, 'import'
FROM json_each(:links) AS link CROSS JOIN tags ON tags.id = json_extract(link.value, '$[1]')
WHERE NOT EXISTS (
    SELECT 1 FROM refused_tags AS r WHERE r.sha256 = json_extract(link.value, '$[0]') AND r.name = tags.name
)
ORDER BY 1, 2 ON CONFLICT DO UPDATE SET origin = 'import' WHERE origin = 'sidecar';

-- name: link_pending
INSERT INTO pending_model_tags (pending_id, tag_id) SELECT json_extract(link.value, '$[0]'), tags.id
FROM json_each(:links) AS link CROSS JOIN tags ON tags.id = json_extract(link.value, '$[1]')
WHERE true ON CONFLICT DO NOTHING;

-- name: changed_rows
-- How many rows the statement before this one changed itself.
SELECT changes();

-- name: pending_met
-- Records of these paths, each with its pictures.
SELECT id, path, state, details, size, root,
    (SELECT json_group_array(json_array(n, source)) FROM pending_images WHERE pending_id = p.id)
FROM pending_import AS p WHERE path IN (SELECT value FROM json_each(:paths));

-- name: pending_ids_met
SELECT id FROM pending_import WHERE id IN (SELECT value FROM json_each(:ids));

-- name: largest_pending
SELECT coalesce(max(id), 0) FROM pending_import;

-- name: import_pending
INSERT INTO pending_import
    (id, legacy_id, path, root, rel, folded, name, size, details, origin, state, sha256, created_at)
SELECT value ->> 'id', value ->> 'legacy_id', value ->> 'path', value ->> 'root', value ->> 'rel', value ->> 'folded',
    value ->> 'name', value ->> 'size', value ->> 'details', 'import', 'waiting', NULL, value ->> 'created_at'
FROM json_each(:rows);

-- name: fill_pending
-- A record that is there already gets what it lacks; nothing that it has is changed.
UPDATE pending_import SET
    legacy_id = coalesce(legacy_id, :legacy_id), root = coalesce(root, :root), rel = coalesce(rel, :rel),
    name = iif(name = '', :name, name), size = coalesce(size, :size), details = :details, origin = 'import'
WHERE id = :id;

-- name: add_pending_image
INSERT INTO pending_images (pending_id, n, file, source) VALUES (:pending_id, :n, :file, :source);

-- name: pending_originals
-- The pending originals that somebody still needs.
SELECT file FROM pending_images
UNION SELECT substr(original, length(:pending) + 2) FROM images WHERE original GLOB :pending || '/*';

-- name: imported_paths
-- Where the models that an import has described lay.
SELECT DISTINCT path.value FROM descriptions, json_each(details, '$.extra.legacy_paths') AS path WHERE layer = 'import';

-- part: fits
-- Of the models that are looked at, those that a search is for.
(:text IS NULL OR sha256 IN (
    SELECT searched.sha256 FROM search JOIN searched ON searched.id = search.rowid WHERE search MATCH :text
))
AND (:tags = '[]' OR sha256 IN (
    SELECT model_tags.sha256 FROM json_each(:tags) JOIN tags ON name = value JOIN model_tags ON tag_id = tags.id
    GROUP BY model_tags.sha256 HAVING count(*) = json_array_length(:tags)
))
AND sha256 NOT IN (
    SELECT model_tags.sha256 FROM json_each(:without) JOIN tags ON name = value
    JOIN model_tags ON tag_id = tags.id
)
AND (:missing = 'yes' OR (:missing = 'only') <> EXISTS (
    SELECT 1 FROM paths WHERE paths.sha256 = models.sha256 AND present = 1
))
AND (:kind = '' OR sha256 IN (SELECT same.sha256 FROM models AS same WHERE same.kind = :kind))
AND (:family = '' OR sha256 IN (
    SELECT same.sha256 FROM models AS same INDEXED BY models_by_kind WHERE same.family = :family
))
AND (:type = '' OR sha256 IN (
    SELECT layered.sha256 FROM descriptions AS layered WHERE json_extract(details, '$.type') = :type COLLATE NOCASE
    UNION SELECT same.sha256 FROM models AS same INDEXED BY models_by_kind WHERE same.kind = :type COLLATE NOCASE
) AND :type = coalesce(
    (
        SELECT nullif(json_extract(details, '$.type'), '') FROM descriptions AS layered
        WHERE layered.sha256 = models.sha256 AND json_type(details, '$.type') IS NOT NULL
        ORDER BY iif(layer = 'user', 0, iif(layer = 'import', 1, 2)) LIMIT 1
    ),
    (SELECT same.kind FROM models AS same WHERE same.sha256 = models.sha256)
) COLLATE NOCASE)

-- name: models_by_name
-- Models that fit, from a place on: read in the order of their index, and only as far as the page goes.
WITH page AS MATERIALIZED (
    SELECT sha256, folded FROM models
    WHERE (folded, sha256) > (:place, :sha256)
        AND {fits}
    ORDER BY folded, sha256 LIMIT :limit
)
SELECT m.sha256, name, size, identity, created_at, loadable, lying, details, tags, digests, pictures
FROM page JOIN whole_models AS m ON m.sha256 = page.sha256
ORDER BY page.folded, page.sha256;

-- name: models_by_time
-- The same, newest first: all models are looked at, as no index has their times.
WITH page AS MATERIALIZED (
    SELECT sha256, -created_at AS place FROM models
    WHERE (:sha256 = '' OR (-created_at, sha256) > (:place, :sha256))
        AND {fits}
    ORDER BY place, sha256 LIMIT :limit
)
SELECT m.sha256, name, size, identity, created_at, loadable, lying, details, tags, digests, pictures
FROM page JOIN whole_models AS m ON m.sha256 = page.sha256
ORDER BY page.place, page.sha256;

-- name: whole_model
SELECT sha256, name, size, identity, created_at, loadable, lying, details, tags, digests, pictures
FROM whole_models WHERE sha256 = :sha256;

-- name: paths_of
-- Where a model is, and then where it was last.
SELECT root, rel, present FROM paths WHERE sha256 = :sha256 ORDER BY present DESC, root, rel;

-- name: tags_on
SELECT id, name, color, (SELECT count(*) FROM model_tags AS every WHERE every.tag_id = tags.id)
FROM model_tags JOIN tags ON tags.id = tag_id WHERE model_tags.sha256 = :sha256 ORDER BY name;

-- name: tags_after
SELECT id, name, color, (SELECT count(*) FROM model_tags WHERE tag_id = tags.id)
FROM tags WHERE name > :after ORDER BY name LIMIT :limit;

-- name: tag
SELECT name, color, (SELECT count(*) FROM model_tags WHERE tag_id = tags.id) FROM tags WHERE id = :id;

-- name: change_tag
UPDATE tags SET name = :name, color = :color WHERE id = :id;

-- name: drop_tag
DELETE FROM tags WHERE id = :id;

-- name: take_tags
DELETE FROM model_tags
WHERE sha256 = :sha256 AND tag_id IN (SELECT id FROM tags WHERE name IN (SELECT value FROM json_each(:names)));

-- name: images_of
SELECT seq, number, state, source, origin, width, height, bytes, error, created_at
FROM images WHERE sha256 = :sha256 ORDER BY seq;

-- name: move_image
UPDATE images SET seq = :seq WHERE sha256 = :sha256 AND number = :number;

-- name: drop_image
DELETE FROM images WHERE sha256 = :sha256 AND number = :number;

-- name: close_gap
UPDATE images SET seq = seq - 1 WHERE sha256 = :sha256 AND seq > :seq;

-- name: outputs_found
SELECT job, n, file, digest, width, height, bytes, seed, model, infotext, created_at FROM outputs
WHERE (:job = '' OR (created_at, job, n) < (:at, :job, :n))
    AND (:model = '' OR substr(model, 1, length(:model)) = :model)
    AND (:text IS NULL OR (job, n) IN (
        SELECT job, n FROM search_outputs JOIN searched_outputs AS s ON s.id = search_outputs.rowid
        WHERE search_outputs MATCH :text
    ))
ORDER BY created_at DESC, job DESC, n DESC LIMIT :limit;

-- name: adoptable
-- Files that lie in these roots, whose content nobody knows, and of which there is no pending record.
SELECT root, rel, size FROM paths
WHERE present = 1 AND sha256 IS NULL AND root IN (SELECT value FROM json_each(:roots))
    AND NOT EXISTS (SELECT 1 FROM pending_import AS p WHERE p.root = paths.root AND p.rel = paths.rel)
ORDER BY root, rel LIMIT :limit;

-- name: adopt
INSERT INTO pending_import
    (id, legacy_id, path, root, rel, folded, name, size, details, origin, state, sha256, created_at)
VALUES (:id, NULL, :path, :root, :rel, :folded, :name, :size, '{}', 'scan', 'waiting', NULL, :created_at)
ON CONFLICT (path) DO UPDATE SET root = excluded.root, rel = excluded.rel WHERE root IS NULL;

-- name: count_pending
SELECT count(*) FROM pending_import;

-- name: file_at
SELECT size, sha256 FROM paths WHERE root = :root AND rel = :rel AND present = 1;

-- name: pending_states
SELECT id, state FROM pending_import WHERE id IN (SELECT value FROM json_each(:ids));

-- name: add_jobs
-- Those that are there already stay as they are. Returns the ids of the others.
INSERT INTO jobs (id, at, view) SELECT value ->> 'id', value ->> 'at', value ->> 'view' FROM json_each(:rows)
WHERE true ON CONFLICT DO NOTHING RETURNING id;

-- name: search_jobs
INSERT INTO search_jobs (id, words)
SELECT id, id || ' ' || {words_of_job} FROM jobs WHERE id IN (SELECT value FROM json_each(:ids));

-- name: search_every_job
INSERT INTO search_jobs (id, words) SELECT id, id || ' ' || {words_of_job} FROM jobs;

-- part: words_of_job
searchable_json(coalesce(view -> '$.plan.prompt', view -> '$.request.prompt')) || ' '
    || searchable_json(coalesce(view -> '$.plan.model.name', view -> '$.request.model')) || ' '
    || coalesce(view ->> '$.plan.model.sha256', '')

-- name: jobs_found
SELECT at, id, view FROM jobs
WHERE (at, id) < (:at, :id)
    AND (:status = '' OR status = :status)
    AND (:text IS NULL OR id IN (SELECT id FROM search_jobs WHERE search_jobs MATCH :text))
ORDER BY at DESC, id DESC LIMIT :limit;

-- name: jobs_among
SELECT id FROM jobs WHERE id IN (SELECT value FROM json_each(:ids));

-- name: drop_jobs
-- Some of those that came and ended before a time. Returns their ids.
DELETE FROM jobs WHERE id IN (
    SELECT id FROM jobs WHERE at < :before AND coalesce(ended_at, 0) < :before ORDER BY at LIMIT :limit
) RETURNING id;

-- name: unsearch_jobs
DELETE FROM search_jobs WHERE id IN (SELECT value FROM json_each(:ids));
