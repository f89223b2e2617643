"""manifest.json: what the scores in a folder were made of, by which a run that goes on knows its own."""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyarrow import parquet

from ..data.files.raw import readable
from ..errors import InputError
from ..files import write_json

if TYPE_CHECKING:
    from .scorer import Scorer

logger = logging.getLogger(__name__)

NAME = "manifest.json"
POSITIONS = "positions.arrow"  # beside it, those on tiles in the order of the scores
METADATA = b"lens_ssl_hf"  # its key in the schema of a shard
AGAIN = "remove it, and lens-ssl score makes it again"
SHARD = "scores-{number:05d}-of-{count:05d}.parquet"
CALIBRATION = ("a", "b", "lowest_logit")  # what decides on p_lens
# Options that earlier versions did not have, and what these did.
_FORMER = {"precision": "fp32", "zero_point": None, "pixel_scale": None}
_PACKAGES = ("lens-ssl-hf", "torch", "transformers", "numpy", "pyarrow", "astropy")


def describe(scorer: "Scorer", models: Sequence[Any], source: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """
    What scores are made of.

    Args:
        scorer ([`Scorer`]), models (`Sequence`): the models, and where they come from.
        source: an opened input.
        options (`Mapping`): of the run, as far as they change its results.
    """
    return {
        "models": [
            {
                "model": str(model),
                "revision": getattr(classifier.model.config, "_commit_hash", None),
                "weights_sha256": weights_sha256(model),
                "mean": classifier.mean,
                "std": classifier.std,
                **asdict(preparation),
            }
            for model, classifier, preparation in zip(models, scorer.classifiers, scorer.preparations)
        ],
        "input": {
            "path": source.name,
            "kind": source.kind,
            "cutouts": len(source),
            "fingerprint": source.fingerprint,
        },
        "options": dict(options),
        "versions": {package: metadata.version(package) for package in _PACKAGES if _is_installed(package)},
    }


def key_of(manifest: Mapping[str, Any]) -> str:
    """A digest of what decides on the scores; every shard carries it."""
    return hashlib.sha256(json.dumps(_deciding(manifest), sort_keys=True).encode()).hexdigest()[:32]


def agree(output: Path, manifest: dict[str, Any]) -> None:
    """
    Go on with a folder that holds scores of the same models, input and options, which `manifest` then spells as the
    folder does; where it holds none, write the manifest.

    Raises:
        [`InputError`]: it holds others; names what differs.
    """
    if not (output / NAME).is_file():
        if any(output.glob("scores-*.parquet")):
            raise InputError(f"{output} holds scores without {NAME}: choose another output")
        write_json(output / NAME, manifest)
        return
    earlier, now = read(output), json.loads(json.dumps(manifest))  # in which a tuple is a list, too
    if differences := _differences(_deciding(earlier), _deciding(now)):
        raise InputError(
            f"{output} holds scores that were made otherwise ({'; '.join(differences)}): choose another output"
        )
    for name, value in earlier["options"].items():
        if now["options"].get(name) == value:
            manifest["options"][name] = value  # 27 and 27.0 are one zero point, but of two keys
    changed = [name for name, version in manifest["versions"].items() if earlier["versions"].get(name) != version]
    if changed:
        logger.warning(f"{output} was begun with other {', '.join(changed)}: its last bits may differ")


def check_output(output: str | os.PathLike, scored: str | os.PathLike) -> None:
    """
    Raises:
        [`InputError`]: the folder to write lies in the input of scores, which would be another one then.
    """
    if Path(os.path.realpath(output)).is_relative_to(os.path.realpath(scored)):
        raise InputError(f"output {output} lies in the input {scored}: choose another output")


def read(folder: Path) -> dict[str, Any]:
    """
    Raises:
        [`InputError`]: the folder holds no manifest, or a damaged one.
    """
    path = folder / NAME
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        _deciding(manifest), manifest["options"]["shard_size"], manifest["input"]["path"], manifest["versions"]
    except OSError as error:
        raise InputError(f"{folder} holds no readable {NAME}: give a folder that lens-ssl score wrote") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged: score again into another folder") from error
    return manifest


def shard_paths(folder: Path, manifest: Mapping[str, Any]) -> list[Path]:
    """The files of all shards, done or not."""
    count = -(-manifest["input"]["cutouts"] // manifest["options"]["shard_size"])
    return [folder / SHARD.format(number=number, count=count) for number in range(count)]


def shard_facts(path: Path) -> dict[str, Any]:
    """What a shard says of itself: the `key` of what it was made of, and how many of its cutouts are flagged."""
    with readable(path, fix=AGAIN), parquet.ParquetFile(path) as file:
        return json.loads(file.schema_arrow.metadata[METADATA])


def _deciding(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Without paths, which may change where content does not, and without versions."""
    models = [
        {key: value for key, value in one.items() if key not in ("model", "revision")} for one in manifest["models"]
    ]
    given = {key: manifest["input"][key] for key in ("kind", "cutouts", "fingerprint")}
    calibration = manifest.get("calibration")
    numbers = calibration and {name: calibration[name] for name in CALIBRATION}
    options = {one: value for one, value in manifest["options"].items() if one != "tiles"}
    options = dict(item for item in options.items() if item not in _FORMER.items())
    return {"models": models, "input": given, "options": options, "calibration": numbers}


def _differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, in words."""
    found = []
    if len(earlier["models"]) != len(now["models"]):
        found.append(f"of {len(earlier['models'])} models, not {len(now['models'])}")
    for number, (one, other) in enumerate(zip(earlier["models"], now["models"]), start=1):
        parts = [key for key in other if one.get(key) != other[key]]
        found += [f"model {number} is another: {', '.join(parts)}"] if parts else []
    parts = [key for key in now["input"] if earlier["input"].get(key) != now["input"][key]]
    found += [f"the input is another: {', '.join(parts)}"] if parts else []
    for key in now["options"] | earlier["options"]:
        old, new = (one["options"].get(key, _FORMER.get(key)) for one in (earlier, now))
        if old != new:
            found.append(f"{key} was {old}, not {new}")
    return found + (["the calibration is another"] if earlier["calibration"] != now["calibration"] else [])


def weights_sha256(model: Any) -> str:
    """SHA-256 of a model's file of weights, as `sha256sum` and the Hub show it; of several files that of theirs."""
    from ..models.loading import locate, weight_files  # torch, which a ranking does not need

    digests = []
    for path in weight_files(locate(model), model, {}):
        with open(path, "rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
