"""The tables of the SQLite store.

A flow run's id is stored once, in `flow_runs`; all other rows have its small integer key instead, so that they are
short and the rows of one run are neighbours. What an engine records of task runs comes in `blocks`, many records in
one value; the same kind of record may as well be a row of `task_runs` or `state_changes`, where a task run that is in
both counts as it is in its row. A result of more than a few bytes lies apart for the same reason, and a
cache entry, which few state changes have, does so too.

Every row has a checksum of its own. `progress` says which flow runs have ended, and how many state changes and
log entries there were by then, so that one which is missing is noticed; `standings` has what was counted of the task
runs of large ones. The rows of a run in `removed_runs` are on
their way out. `spools` says how far each spool beside the database has been filed.
"""

from __future__ import annotations

APPLICATION_ID = 0x6C666C77  # "lflw", in the file's header: SQLite's way to say whose database a file is
FORMAT_VERSION = 3

#: What has to be said before the first table is made.
FILE_PRAGMAS = (
    "PRAGMA page_size = 2048",
    "PRAGMA auto_vacuum = INCREMENTAL",
    "PRAGMA application_id = 1818651767",
)
SET_VERSION = "PRAGMA user_version = 3"

#: What TABLES has made, as it is noted in the file.
SELECT_TABLES = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite%'"

TABLES = (
    """CREATE TABLE flow_runs (
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    flow TEXT NOT NULL,
    created_at REAL NOT NULL,
    root_id TEXT NOT NULL,
    parent_id TEXT,
    parameters TEXT NOT NULL,
    entry_point TEXT NOT NULL,
    executor TEXT NOT NULL,
    versions TEXT NOT NULL,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    tags TEXT,
    code TEXT NOT NULL,
    inputs TEXT NOT NULL,
    arguments_format TEXT,
    arguments BLOB,
    checksum INTEGER NOT NULL
)""",
    "CREATE INDEX flow_runs_by_root ON flow_runs (root_id)",
    """CREATE TABLE progress (
    flow_run INTEGER PRIMARY KEY,
    is_final INTEGER NOT NULL,
    changes INTEGER,
    log_entries INTEGER
)""",
    "CREATE INDEX unfinished ON progress (flow_run) WHERE is_final = 0",
    """CREATE TABLE standings (
    flow_run INTEGER PRIMARY KEY,
    content TEXT NOT NULL,
    checksum INTEGER NOT NULL
)""",
    """CREATE TABLE task_runs (
    flow_run INTEGER NOT NULL,
    number INTEGER NOT NULL,
    name TEXT NOT NULL,
    task TEXT NOT NULL,
    ordinal INTEGER NOT NULL,
    created_at REAL NOT NULL,
    upstreams TEXT,
    tags TEXT,
    version TEXT NOT NULL,
    map_number INTEGER NOT NULL,
    map_index INTEGER NOT NULL,
    code TEXT NOT NULL,
    inputs TEXT NOT NULL,
    checksum INTEGER NOT NULL,
    PRIMARY KEY (flow_run, number)
) WITHOUT ROWID""",
    """CREATE TABLE state_changes (
    flow_run INTEGER NOT NULL,
    number INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    type TEXT NOT NULL,
    name TEXT NOT NULL,
    message TEXT NOT NULL,
    timestamp REAL NOT NULL,
    previous TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    worker TEXT,
    pid INTEGER,
    started_at REAL,
    ended_at REAL,
    cpu_seconds REAL,
    peak_rss_bytes INTEGER,
    cause TEXT,
    result_format TEXT,
    checksum INTEGER NOT NULL,
    result BLOB,
    result_checksum INTEGER,
    PRIMARY KEY (flow_run, number, sequence)
) WITHOUT ROWID""",
    """CREATE TABLE large_results (
    flow_run INTEGER NOT NULL,
    number INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (flow_run, number, sequence)
) WITHOUT ROWID""",
    """CREATE TABLE cache_entries (
    entry INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    expires_at REAL,
    flow_run INTEGER NOT NULL,
    number INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    checksum INTEGER NOT NULL,
    UNIQUE (flow_run, number, sequence)
)""",
    "CREATE INDEX cache_entries_by_key ON cache_entries (key)",
    """CREATE TABLE blocks (
    block INTEGER PRIMARY KEY AUTOINCREMENT,
    flow_run INTEGER NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    task_runs INTEGER NOT NULL,
    changes INTEGER NOT NULL,
    content BLOB NOT NULL,
    checksum INTEGER NOT NULL
)""",
    "CREATE INDEX blocks_by_run ON blocks (flow_run, first, last)",
    """CREATE TABLE log_entries (
    flow_run INTEGER NOT NULL,
    position INTEGER NOT NULL,
    number INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    timestamp REAL NOT NULL,
    level INTEGER NOT NULL,
    source TEXT NOT NULL,
    message TEXT NOT NULL,
    checksum INTEGER NOT NULL,
    PRIMARY KEY (flow_run, position)
) WITHOUT ROWID""",
    "CREATE TABLE removed_runs (flow_run INTEGER PRIMARY KEY)",
    """CREATE TABLE spools (
    name TEXT PRIMARY KEY,
    generation INTEGER NOT NULL,
    end INTEGER NOT NULL
) WITHOUT ROWID""",
)
