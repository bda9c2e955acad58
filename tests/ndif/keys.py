"""The database that ndif reads API keys from: a PostgreSQL of our own, with the four tables that ndif's query names.

A key is a UUID; `tags` are what it grants: `trusted` keys run in the actor even on a sandboxed server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

PORT = 5432
URL = f"postgresql://postgres@127.0.0.1:{PORT}/postgres"
INSTALLED = Path("/usr/lib/postgresql")  # where Debian installs the servers, by version
NOT_ROOT = ["unshare", "--user", "--map-user=1000"]  # PostgreSQL does not run for root; the files stay ours

TABLES = """
CREATE TABLE users (user_id integer PRIMARY KEY, email text);
CREATE TABLE keys (key_id uuid PRIMARY KEY, user_id integer);
CREATE TABLE user_tags (user_tag_id integer PRIMARY KEY, name text);
CREATE TABLE key_user_tag_assignments (key_id uuid, user_tag_id integer);
INSERT INTO users VALUES (1, 'someone@example.org');
INSERT INTO user_tags VALUES (1, 'trusted'), (2, 'priority');
"""
TAGS = {"trusted": 1, "priority": 2}


def binary(name: str) -> Path | None:
    """One of PostgreSQL's programs, of the newest version here."""
    return max(INSTALLED.glob(f"*/bin/{name}"), default=None)


def make_database(folder: Path) -> list[str | Path]:
    """The command that makes a database in a folder; everybody who reaches it has all rights."""
    return [*NOT_ROOT, binary("initdb"), "-D", folder / "keys", "-U", "postgres", "--auth=trust", "--no-sync"]


def serve_database(folder: Path) -> list[str | Path]:
    return [
        *NOT_ROOT, binary("postgres"), "-D", folder / "keys", "-p", str(PORT),
        "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}", "-c", "fsync=off",
        "-c", "dynamic_shared_memory_type=mmap",  # in the folder, not in /dev/shm, where it would stay
    ]  # fmt: skip


def is_ready() -> list[str | Path]:
    """The command that succeeds once the database takes statements; its port is open before that."""
    return [binary("pg_isready"), "--host=127.0.0.1", f"--port={PORT}", "--quiet"]


def statements(keys: Mapping[str, Sequence[str]]) -> str:
    """SQL that makes the tables and enters keys, each with its tags."""
    rows = [f"INSERT INTO keys VALUES ('{key}', 1);" for key in keys]
    tags = [
        f"INSERT INTO key_user_tag_assignments VALUES ('{key}', {TAGS[tag]});"
        for key, granted in keys.items()
        for tag in granted
    ]
    return "\n".join([TABLES, *rows, *tags])


def enter(sql: str) -> list[str | Path]:
    """The command that runs statements."""
    return [binary("psql"), URL, "--quiet", "--set=ON_ERROR_STOP=1", f"--command={sql}"]
