"""The content of every cutout as a hash, by which copies are found, and files that cannot be read."""

import hashlib
from collections import defaultdict

from ...errors import InputError
from ..files.raw import check_file, readable
from ..files.stacks import Stack, digest_stack_rows
from ..pool import map_chunks
from .rows import BadFiles, Row

_PIECE = 1 << 20  # bytes of a file that are hashed at once


def digest_rows(
    rows: list[Row], bad: BadFiles, num_proc: int | None = None, stack: Stack | None = None
) -> tuple[list[Row], int]:
    """
    Hash the content of every file, or of every cutout of a stack, into `row.digest`.

    Returns:
        `tuple[list[Row], int]`: the rows without bad files (missing ones, labelled copies) and without copies of
        others that are unlabelled, and the number of these copies.
    """
    by_digest = defaultdict(list)
    for row, (digest, problem) in zip(rows, map_chunks(_digest_chunk, rows, num_proc, (stack,))):
        if problem:
            bad.add(_printable(row.name), InputError(problem))
        else:
            row.digest = digest
            by_digest[digest].append(row)
    readable = [row for same in by_digest.values() for row in same]
    kept = {row.id for same in by_digest.values() for row in _without_copies(same, bad)}
    copies = sum(row.label < 0 and row.id not in kept for row in readable)
    return [row for row in rows if row.id in kept], copies


def _digest_chunk(rows: list[Row], stack: Stack | None) -> list[tuple[str, str]]:
    """Digest and problem of each row, one of them empty."""
    if stack is not None:
        return [(digest, "") for digest in digest_stack_rows(stack, [row.position for row in rows])]
    return [_digest_row(row) for row in rows]


def _digest_row(row: Row) -> tuple[str, str]:
    digest = hashlib.blake2b(digest_size=16)
    for path in row.paths:
        try:
            str(path).encode()
            check_file(path)
            with readable(path), open(path, "rb") as stream:
                while piece := stream.read(_PIECE):
                    digest.update(piece)
        except UnicodeEncodeError:
            return "", f"{_printable(path)} has a name that is not UTF-8: rename the file"
        except InputError as error:
            return "", str(error)
    return digest.hexdigest(), ""


def _printable(path: object) -> str:
    return str(path).encode("utf-8", "backslashreplace").decode()


def _without_copies(copies: list[Row], bad: BadFiles) -> list[Row]:
    """One of the rows with the same content, the first labelled one; further labelled ones are bad."""
    labelled = [row for row in copies if row.label >= 0]
    if not labelled:
        return copies[:1]
    # Copies that disagree on the label are all wrong; of others the first one stays.
    disagree = len({row.label for row in labelled}) > 1
    for row in labelled if disagree else labelled[1:]:
        other = labelled[0] if row is not labelled[0] else labelled[1]
        problem = f"{row.name} has the same content as {other.name}{' with another label' if disagree else ''}"
        bad.add(row.name, InputError(f"{problem}: remove one of them"))
    return [] if disagree else labelled[:1]
