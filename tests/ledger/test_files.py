"""Files that were sent: in pieces, counted, and gone when they should be."""

import pytest

from core.errors import FileNotFound, FilesFull
from core.ledger import FILE_BYTES, PIECE_BYTES, File, Files
from tests.ledger.scenario import PERMANENT, Scenario
from tests.processes import wait_for

CONTENT = bytes(range(256)) * (PIECE_BYTES // 256) * 2 + b"the end"


def send(
    at: Scenario, file_id: str = "file-1", content: bytes = CONTENT, *, tenant: str = "alice", ttl_seconds: int = 600
) -> File:
    files = Files(at.ledger)
    pieces = [content[first : first + PIECE_BYTES] for first in range(0, len(content), PIECE_BYTES)]
    for number, piece in enumerate(pieces):
        files.upload(file_id, tenant, number, piece, {})
    return files.keep(
        file_id, tenant, pieces=len(pieces), filename="a", purpose="batch", size_bytes=len(content), ttl_seconds=ttl_seconds
    )


def held(at: Scenario, field: str = "files") -> int:
    return int(at.redis.hget(at.key("live"), field) or 0)


def test_file_is_read_as_it_was_sent(at: Scenario) -> None:
    file, files = send(at), Files(at.ledger)
    assert files.get("file-1", "alice") == file
    assert files.ids("alice") == ["file-1"]
    for start, end in [(0, None), (0, 1), (PIECE_BYTES - 1, PIECE_BYTES + 1), (PIECE_BYTES, 2 * PIECE_BYTES), (5, len(CONTENT))]:
        assert b"".join(files.read(file, start, end)) == CONTENT[start:end]


def test_bytes_are_counted_once_and_given_back(at: Scenario) -> None:
    send(at)
    send(at, "file-2", b"more", tenant="bob")
    Files(at.ledger).upload("file-1", "alice", 0, CONTENT[:PIECE_BYTES], {})  # a late repeat
    assert (held(at), held(at, "files:alice"), held(at, "files:bob")) == (
        len(CONTENT) + 4 + 2 * FILE_BYTES,
        len(CONTENT) + FILE_BYTES,
        4 + FILE_BYTES,
    )
    Files(at.ledger).discard("file-1", "alice")
    assert (held(at), held(at, "files:alice")) == (4 + FILE_BYTES, 0)
    Files(at.ledger).discard("file-2", "bob")
    assert at.all_keys() <= PERMANENT


@pytest.mark.parametrize("setting", ["MAX_FILES_BYTES", "MAX_TENANT_FILES_BYTES"])
def test_piece_beyond_a_limit_is_refused(at: Scenario, setting: str) -> None:
    files = Files(at.ledger)
    files.upload("file-1", "alice", 0, b"x" * 60, {setting: 100 + FILE_BYTES})
    with pytest.raises(FilesFull, match=rf"take 4156 bytes, the limit is 4196 \({setting}\)"):
        files.upload("file-1", "alice", 1, b"x" * 41, {setting: 100 + FILE_BYTES})
    files.upload("file-1", "alice", 1, b"x" * 40, {setting: 100 + FILE_BYTES})
    files.discard("file-1", "alice")
    assert at.all_keys() <= PERMANENT


def test_limit_of_one_tenant_is_not_used_up_by_others(at: Scenario) -> None:
    send(at, content=b"x" * 100)
    Files(at.ledger).upload("file-2", "bob", 0, b"x" * 50, {"MAX_TENANT_FILES_BYTES": 100 + FILE_BYTES})


def test_file_belongs_to_its_tenant(at: Scenario) -> None:
    send(at)
    files = Files(at.ledger)
    for call in (files.get, files.discard):
        with pytest.raises(FileNotFound):
            call("file-1", "bob")
    assert files.ids("bob") == []
    assert files.get("file-1", "alice")


def test_file_that_lost_pieces_is_not_kept(at: Scenario) -> None:
    files = Files(at.ledger)
    files.upload("file-1", "alice", 0, b"x", {})
    with pytest.raises(FileNotFound, match="send it again"):
        files.keep("file-1", "alice", pieces=2, filename="a", purpose="batch", size_bytes=2, ttl_seconds=600)
    with pytest.raises(FileNotFound):
        files.get("file-1", "alice")


def test_nothing_is_left_of_files_that_expired_or_never_came_whole(at: Scenario) -> None:
    send(at, ttl_seconds=1)
    Files(at.ledger).upload("file-2", "alice", 0, b"x", {})
    at.redis.zadd(at.key("uploads"), {"file-2/alice": 1})  # ten minutes pass

    def swept() -> bool:
        at.ledger.wants_wake("cpu")
        return at.all_keys() <= PERMANENT

    wait_for(swept, seconds=10, what="the end of the files' keys")
    with pytest.raises(FileNotFound):
        Files(at.ledger).get("file-1", "alice")
