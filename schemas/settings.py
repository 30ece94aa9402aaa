"""Settings: one Struct, read once (flags over DARKROOM_* environment over darkroom.toml); each agent gets its slice.

Durations are seconds, sizes bytes. Unknown keys are refused at every level.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from schemas.files import Digest

Seconds = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]


class BusSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Leases, attempts and queue lengths. `store_bytes` is what the streams of this bus may take on the server's disk
    when the server reports none (the local one is started with it); 0 means half of the free disk, 64 GiB at most."""

    ack_wait: Seconds = 30.0
    heartbeat: Seconds = 10.0
    max_attempts: Count = 3
    retry_delay: Seconds = 1.0
    hash_queue: Count = 200_000
    prepare_queue: Count = 10_000
    generate_queue: Count = 16
    encode_queue: Count = 1_000
    import_queue: Count = 100
    store_bytes: Annotated[int, Meta(ge=0)] = 0

    def __post_init__(self) -> None:
        if self.heartbeat * 2 > self.ack_wait:
            raise ValueError("heartbeat must be at most half of ack_wait, else jobs run twice")


class HttpSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The bridge. Port 0 takes any free one. A host other than loopback needs an `api_key`. `hosts` and `origins` are
    allowed besides loopback names. Legacy catalogs, and their pictures, are imported over HTTP from the folders
    `import_roots` only."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 7860
    api_key: str = ""
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    import_roots: tuple[str, ...] = ()


class WatcherSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often the truth is looked up, and how long a file without complete proof must hold still. A control file
    (.aria2, .part, …) that was not written for `stale_control` holds back no file that is proven to be complete."""

    scan_interval: Seconds = 60.0
    stable: Seconds = 2.0
    stable_with_holes: Seconds = 30.0
    stale_control: Seconds = 24 * 3600.0
    mode: Literal["auto", "events", "polling"] = "auto"
    poll_interval: Seconds = 5.0


class HasherSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`parallel` files are hashed side by side, but one at a time from each rotational disk. `rotational` overrules
    what the kernel reports of the disks: yes for all of them, or no. `also` is computed of every file
    besides its SHA-256. With `following`, a large file is hashed while it is still being written."""

    parallel: Count = 2
    rotational: Literal["auto", "yes", "no"] = "auto"
    also: tuple[Digest, ...] = ()
    following: bool = True


class MigratorSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What becomes of a pending record when its file turns out to hold a model that is described already: `report` it
    and leave it, `ignore` (leave it), `delete` it, `merge` (fill what is empty) or `override`. What a sweep took away
    stays in the trash for `trash_days`. Lists of jobs know those that ended less than `jobs_days` ago (0: all)."""

    conflicts: Literal["report", "override", "merge", "ignore", "delete"] = "report"
    trash_days: Seconds = 30.0
    jobs_days: Annotated[float, Meta(ge=0)] = 90.0


class GeneratorSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One device. `threads` 0 leaves torch's choice. A warm model is kept for at most `affinity_jobs` jobs or
    `affinity_seconds` while others wait. `previews` a second; 0 turns them off."""

    device: str = "auto"
    threads: Annotated[int, Meta(ge=0)] = 0
    affinity_jobs: Count = 8
    affinity_seconds: Seconds = 10.0
    previews: Annotated[float, Meta(ge=0, le=30)] = 4.0


class EncoderSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Jobs encoded side by side."""

    parallel: Count = 2


class LimitSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one request may ask for at most (sizes in pixels)."""

    max_side: Count = 2048
    max_pixels: Count = 2048 * 2048
    max_steps: Count = 150
    max_images: Count = 16
    max_prompt: Count = 8_000


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything. `roots` maps a root's name (a to z, 0 to 9, '-' and '_') to its folder; left out, it is `models` at
    `<data_dir>/models`. `model_folders` (of A1111, ComfyUI, StabilityMatrix and the like) and `extra_model_paths`
    (ComfyUI's yaml files) add the folders they hold as roots. `nats_url` empty means a local server is started."""

    data_dir: str = "data"
    nats_url: str = ""
    roots: dict[str, str] = {}
    model_folders: tuple[str, ...] = ()
    extra_model_paths: tuple[str, ...] = ()
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    bus: BusSettings = BusSettings()
    http: HttpSettings = HttpSettings()
    watcher: WatcherSettings = WatcherSettings()
    hasher: HasherSettings = HasherSettings()
    migrator: MigratorSettings = MigratorSettings()
    generator: GeneratorSettings = GeneratorSettings()
    encoder: EncoderSettings = EncoderSettings()
    limits: LimitSettings = LimitSettings()
