-- What is read from the watcher's table (data/files.sqlite3) and written to it.

-- name: instance
SELECT instance FROM meta;

-- name: put_instance
INSERT INTO meta (instance) VALUES (:instance);

-- name: rows
SELECT * FROM path ORDER BY root, rel;

-- name: waiting
SELECT * FROM path WHERE state = 'waiting' AND NOT gone ORDER BY root, rel;

-- name: waiting_since
SELECT id, rel, changed_at FROM path
WHERE root = :root AND rel > :after AND state = 'waiting' AND NOT gone ORDER BY rel LIMIT :limit;

-- name: unhashed
SELECT * FROM path WHERE state = 'settled' AND NOT gone AND NOT EXISTS (
    SELECT 1 FROM hash
    WHERE hash.dev = path.dev AND hash.ino = path.ino AND hash.size = path.size
        AND hash.mtime_ns = path.mtime_ns AND hash.ctime_ns = path.ctime_ns
) ORDER BY root, rel;

-- name: counts
SELECT count(*) AS files, count(*) FILTER (WHERE state = 'waiting') AS waiting,
    count(*) FILTER (WHERE state = 'refused') AS refused,
    count(*) FILTER (WHERE state = 'settled' AND NOT EXISTS (
        SELECT 1 FROM hash
        WHERE hash.dev = path.dev AND hash.ino = path.ino AND hash.size = path.size
            AND hash.mtime_ns = path.mtime_ns AND hash.ctime_ns = path.ctime_ns
    )) AS unhashed
FROM path WHERE root = :root AND NOT gone;

-- name: refusals
SELECT rel, error FROM path WHERE root = :root AND NOT gone AND state = 'refused' ORDER BY rel LIMIT :limit;

-- name: listing
SELECT path.*, CASE WHEN state = 'settled' AND confirmed THEN sha256 END AS sha256, identity FROM path
LEFT JOIN hash ON hash.dev = path.dev AND hash.ino = path.ino AND hash.size = path.size
    AND hash.mtime_ns = path.mtime_ns AND hash.ctime_ns = path.ctime_ns
WHERE root = :root AND rel > :after AND NOT gone AND state <> 'refused' ORDER BY rel LIMIT :limit;

-- name: row
SELECT * FROM path WHERE id = :id;

-- name: row_at
SELECT * FROM path WHERE root = :root AND rel = :rel;

-- name: has_inode
SELECT 1 FROM path WHERE ino = :ino AND dev = :dev LIMIT 1;

-- name: insert
INSERT INTO path (root, rel, key, dev, ino, size, mtime_ns, ctime_ns, links, state, changed_at)
VALUES (:root, :rel, :key, :dev, :ino, :size, :mtime_ns, :ctime_ns, :links, 'waiting', :now)
RETURNING *;

-- name: update
UPDATE path SET
    root = :root, rel = :rel, key = :key, dev = :dev, ino = :ino, size = :size, mtime_ns = :mtime_ns,
    ctime_ns = :ctime_ns, links = :links, state = :state, told = :published, gone = :gone, unmounted = :unmounted,
    fingerprint = :fingerprint, reason = :reason, error = :error, version = version + 1, changed_at = :now
WHERE id = :id
RETURNING *;

-- name: lift
UPDATE path SET rel = '//' || id WHERE id = :id;

-- name: clear
DELETE FROM path WHERE root = :root AND rel = :rel AND gone;

-- name: add_outgoing
INSERT INTO outbox (kind, message_id, payload) VALUES (:kind, :message_id, :payload);

-- name: unsent
SELECT id, kind, message_id, payload FROM outbox ORDER BY id LIMIT :limit;

-- name: sent
DELETE FROM outbox WHERE id = :id;

-- name: remember
INSERT INTO hash (dev, ino, size, mtime_ns, ctime_ns, sha256, identity, hashed_at, confirmed)
VALUES (:dev, :ino, :size, :mtime_ns, :ctime_ns, :sha256, :identity, :hashed_at, 0)
ON CONFLICT DO UPDATE SET
    sha256 = excluded.sha256, identity = excluded.identity, hashed_at = excluded.hashed_at,
    confirmed = confirmed AND sha256 = excluded.sha256;

-- name: known
SELECT sha256, identity FROM hash
WHERE dev = :dev AND ino = :ino AND size = :size AND mtime_ns = :mtime_ns AND ctime_ns = :ctime_ns AND confirmed;

-- name: carry
INSERT INTO hash (dev, ino, size, mtime_ns, ctime_ns, sha256, identity, hashed_at, confirmed)
SELECT :dev, :ino, :size, :mtime_ns, :ctime_ns, sha256, identity, hashed_at, 1 FROM hash
WHERE dev = :old_dev AND ino = :old_ino AND size = :old_size AND mtime_ns = :old_mtime_ns
    AND ctime_ns = :old_ctime_ns AND (confirmed OR hashed_at <= :settled_before)
ON CONFLICT DO UPDATE SET confirmed = 1 WHERE hash.sha256 = excluded.sha256;

-- name: confirm
UPDATE hash SET confirmed = 1
WHERE NOT confirmed AND hashed_at <= :settled_before AND EXISTS (
    SELECT 1 FROM path
    WHERE path.dev = hash.dev AND path.ino = hash.ino AND path.size = hash.size AND path.mtime_ns = hash.mtime_ns
        AND path.ctime_ns = hash.ctime_ns AND NOT path.gone AND path.root = :root
);

-- name: with_sidecars
-- The files that are hashed and described, or were, with what was published of that. A content that was described at
-- another path, and not yet at this one, is as good as gone here: it may have come without its sidecars.
WITH elsewhere AS MATERIALIZED (SELECT DISTINCT sha256 FROM described WHERE mark <> '')
SELECT path.root, path.rel, path.key, hash.sha256, described.sha256 AS described,
    CASE
        WHEN coalesce(described.mark, '') = '' AND described.sha256 IS NOT hash.sha256
            AND hash.sha256 IN (SELECT sha256 FROM elsewhere) THEN 'gone'
        ELSE coalesce(described.mark, '')
    END AS mark
FROM path
JOIN hash ON hash.dev = path.dev AND hash.ino = path.ino AND hash.size = path.size
    AND hash.mtime_ns = path.mtime_ns AND hash.ctime_ns = path.ctime_ns
LEFT JOIN described ON described.root = path.root AND described.rel = path.rel
WHERE path.state = 'settled' AND NOT path.gone AND path.root = :root
    AND (
        described.rel IS NOT NULL OR path.rel IN (SELECT value FROM json_each(:rels))
        OR hash.sha256 IN (SELECT sha256 FROM elsewhere)
    )
ORDER BY path.rel;

-- name: has_described
SELECT 1 FROM described LIMIT 1;

-- name: describe
INSERT INTO described (root, rel, sha256, mark) VALUES (:root, :rel, :sha256, :mark)
ON CONFLICT (root, rel) DO UPDATE SET sha256 = excluded.sha256, mark = excluded.mark;

-- name: forget_description
-- No scan finds this mark: a model that is back is described, even by nothing at all.
UPDATE described SET mark = 'gone' WHERE root = :root AND rel = :rel AND mark <> '';

-- name: move_description
-- A model that moved is described anew: it may have come without its sidecars.
INSERT INTO described (root, rel, sha256, mark)
SELECT :root, :rel, sha256, 'gone' FROM described WHERE root = :old_root AND rel = :old_rel AND mark <> ''
ON CONFLICT (root, rel) DO UPDATE SET sha256 = excluded.sha256, mark = excluded.mark;

-- name: prune_described
DELETE FROM described
WHERE NOT EXISTS (SELECT 1 FROM path WHERE path.root = described.root AND path.rel = described.rel);

-- name: prune_paths
DELETE FROM path WHERE gone AND NOT unmounted AND NOT told AND changed_at < :before;

-- name: prune_hashes
DELETE FROM hash WHERE hashed_at < :before AND NOT EXISTS (
    SELECT 1 FROM path
    WHERE path.dev = hash.dev AND path.ino = hash.ino AND path.size = hash.size
        AND path.mtime_ns = hash.mtime_ns AND path.ctime_ns = hash.ctime_ns
);
