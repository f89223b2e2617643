"""Which cutouts a folder holds: its class folders, or files without labels; what of it is left out."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ...errors import InputError
from ..files.readers import is_cutout_file
from .file_patterns import check_pattern, match_pattern, refuse_bands_as_objects, suggest_pattern
from .labels import check_label_map
from .rows import BadFiles, Listing, Row
from .splits import SPLIT_NAMES

_CLASS_FOLDER = re.compile(
    r"(?:(?P<split>train|val|valid|validation|test)[_-]?)??(?P<kind>lens(es)?|non[_-]?lens(es)?|unlabell?ed)", re.I
)
# What operating systems, notebooks and archives leave beside data.
_NOT_DATA = {"__macosx", "lost+found", "@eadir", "$recycle.bin", "recycler", "#recycle", "@recycle", "__pycache__"}
_NOT_DATA |= {"system volume information", "thumbs.db", "desktop.ini", "@recently-snapshot"}


def list_folder(
    folder: Path,
    file_pattern: str | None,
    bands: Sequence[str] | None,
    label_map: Mapping[str, int],
    bad: BadFiles,
) -> Listing:
    """
    Cutouts below `lenses/` and `nonlenses/`, `train_lenses/` and so on, or `train/lenses/` and so on, and
    `unlabelled/`; or the files of a folder without any of these, unlabelled. A folder inside a class folder is the
    subclass of its cutouts. Links to folders are followed; hidden files, trash and checkpoints are left out.
    """
    if file_pattern:
        check_pattern(file_pattern, bands)
    hidden: list[Path] = []
    classes, others, names = _class_folders(folder, label_map, hidden)
    check_label_map(label_map, names, f"{folder} as the name of a folder")
    is_flat = not classes and (bool(file_pattern) or any(map(is_cutout_file, filter(Path.is_file, others))))
    is_flat = is_flat and not any(path.parent != folder for path in others)  # train/ without class folders
    if is_flat:
        classes = [(folder, None, -1)]
        others = [] if file_pattern else others
    rows, kinds = [], Counter()
    for directory, split, label in classes:
        is_deep = not is_flat or bool(file_pattern)
        files = (
            files_below(directory, hidden) if is_deep else [p for p in _entries(directory, hidden) if not p.is_dir()]
        )
        chosen = [path for path in files if is_cutout_file(path) or not path.exists()]
        kinds.update(path.suffix.lower() or "no suffix" for path in sorted(set(files) - set(chosen)))
        objects = _objects(directory, folder, chosen, file_pattern, bands, bad)
        if file_pattern:
            kinds["that file_pattern does not fit"] += len(chosen) - sum(len(paths) for _, paths in objects)
        kinds_of = _subclasses(directory, folder, [name for name, _ in objects]) if not is_flat else {}
        rows += [Row(name, paths, label, split, subclass=kinds_of.get(name, "")) for name, paths in objects]
    if is_flat and (inside := next((row for row in rows if _is_class(row.id)), None)):
        raise InputError(f"{inside.name} lies in a class folder inside of others: put the class folders outside")
    left_out = _left_out(folder, others, kinds, hidden, is_flat)
    if not rows:
        raise InputError(_nothing_found(folder, file_pattern, left_out))
    places = [] if is_flat else [f"{directory.relative_to(folder)}/" for directory, _, _ in classes]
    return Listing(rows, left_out, [f"taken from {', '.join(places) or 'the folder itself'}"])


def _subclasses(directory: Path, folder: Path, names: list[str]) -> dict[str, str]:
    """The folder of each object inside its class folder; none where every object has a folder of its own."""
    inner = {name: (folder / name).relative_to(directory).parts[:-1] for name in names}
    kinds = {name: parts[0] if parts else "" for name, parts in inner.items()}
    return {} if 1 < len(set(kinds.values())) == len(names) else kinds


def _is_class(name: str) -> bool:
    """Whether a folder in a path has the name of a class."""
    return any(_CLASS_FOLDER.fullmatch(part) for part in name.split("/")[:-1])


def _objects(
    directory: Path,
    folder: Path,
    files: list[Path],
    file_pattern: str | None,
    bands: Sequence[str] | None,
    bad: BadFiles,
) -> list[tuple[str, tuple[Path, ...]]]:
    """Names, relative to `folder`, and files of the objects in a class folder."""
    if file_pattern:
        found = match_pattern(directory, files, file_pattern, bands, bad)
        return [((directory / name).relative_to(folder).as_posix(), paths) for name, paths in found]
    refuse_bands_as_objects([path.relative_to(directory).as_posix() for path in files], str(directory))
    return [(path.relative_to(folder).as_posix(), (path,)) for path in files]


def _class_folders(
    folder: Path, label_map: Mapping[str, int], hidden: list[Path]
) -> tuple[list[tuple[Path, str | None, int]], list[Path], set[str]]:
    """Class folders with split and label; the other entries on their level; the names of all folders there."""
    classes, others, names = [], [], set()
    for child in _entries(folder, hidden):
        split = SPLIT_NAMES.get(child.name.lower()) if child.is_dir() else None
        for path in _entries(child, hidden) if split else [child]:
            match = _CLASS_FOLDER.fullmatch(path.name)
            names |= {path.name} if path.is_dir() else set()
            if not path.is_dir() or not (match or path.name in label_map):
                others.append(path)
                continue
            if path.name in label_map:
                label = label_map[path.name]
            else:
                kind = match["kind"].lower()
                label = -1 if kind.startswith("un") else 0 if kind.startswith("non") else 1
            given = match["split"] if match else None
            classes.append((path, split or SPLIT_NAMES.get((given or "").lower()), label))
    return classes, others, names


def _entries(directory: Path, hidden: list[Path]) -> list[Path]:
    """What a folder holds, in order; hidden files, trash and the like go to `hidden` instead."""
    found = []
    for path in sorted(directory.iterdir()):
        is_hidden = path.name.startswith(".") or path.name.lower() in _NOT_DATA
        (hidden if is_hidden else found).append(path)
    return found


def files_below(directory: Path, hidden: list[Path]) -> list[Path]:
    """
    All files below `directory`, links that lead nowhere included: they are bad files, not absent ones. Links to
    folders are followed, each folder once, as links can lead in a circle. What is left out goes to `hidden`.
    """
    seen = {_identity(path) for path in directory.resolve().parents}

    def walk(place: Path) -> Iterator[Path]:
        if _identity(place) in seen:
            return
        seen.add(_identity(place))
        for path in sorted(_entries(place, hidden), key=Path.is_symlink):  # the folder itself before links to it
            if path.is_dir():
                yield from walk(path)
            else:
                yield path

    return sorted(walk(directory))


def _identity(directory: Path) -> tuple[int, int]:
    status = directory.stat()
    return status.st_dev, status.st_ino


def _left_out(folder: Path, others: list[Path], kinds: Counter, hidden: list[Path], is_flat: bool) -> list[str]:
    """What of a folder is no part of the dataset, for people."""
    texts, loose = [], 0
    hint = ": rename it, or give --label_map with NAME=lens, NAME=nonlens or NAME=unlabelled"
    for path in others:
        if path.is_dir():
            count = sum(map(is_cutout_file, files_below(path, [])))
            texts.append(f"{path.relative_to(folder)}/ ({count} files, not the name of a class{hint})")
            hint = ""
        elif is_cutout_file(path) and not is_flat:
            loose += 1
        elif not is_flat:
            kinds[path.suffix.lower() or "no suffix"] += 1
    texts += [f"{loose} files outside of the class folders"] if loose else []
    texts += [
        f"{count} files {kind}" if " " in kind else f"{count} {kind} files" for kind, count in kinds.items() if count
    ]
    if hidden:
        names = sorted({path.name for path in hidden})
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        texts.append(f"{len(set(hidden))} hidden or trash entries ({shown})")
    return texts


def _nothing_found(folder: Path, file_pattern: str | None, left_out: list[str]) -> str:
    rest = f" (left out: {', '.join(left_out)})" if left_out else ""
    if file_pattern:
        return f"no file in the class folders of {folder} fits file_pattern {file_pattern!r}{rest}: correct it"
    below = [path.relative_to(folder).as_posix() for path in files_below(folder, []) if is_cutout_file(path)]
    if option := suggest_pattern(below):
        if any(map(_is_class, below)):
            return f"{folder} holds a folder per band with classes inside: put the classes outside, as lenses/g/, ..."
        return f"{folder} holds one file per band: give {option}"
    return (
        f"no cutouts in {folder}: put .npy, .fits, .png, ... files into its subfolders lenses/ and nonlenses/ "
        "(or train_lenses/, train_nonlenses/, test_lenses/, ...; or train/lenses/, ...), or files without labels into "
        f"unlabelled/{rest}"
    )
