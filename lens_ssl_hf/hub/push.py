"""Runs and datasets -> repositories on the Hub, with their cards."""

import io
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict, Features, Image
from huggingface_hub import HfApi, ModelCard, get_token
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id, yaml_dump
from PIL import Image as PILImage
from yaml import YAMLError

from ..data.info import CutoutInfo, info_of_splits
from ..data.listing.names import harmless_names
from ..data.options import DataArguments
from ..data.storage import CARD_FILE, PICTURE_COLUMN, card_header, save_cutouts
from ..errors import InputError
from ..evaluation.pictures import colour_image
from ..files import temporary_folder, write_json
from ..quoting import in_markdown
from ..training.run_directory import RECIPE, read_recipe, read_run
from .card import read_evaluation, render_dataset_card
from .clean import without_local_paths
from .export import CALIBRATION, METRICS, export, is_of_export
from .upload import upload

NO_TOKEN = (
    "no Hugging Face token is at hand: log in with `hf auth login`, or set HF_TOKEN, with a token that may write "
    "(https://huggingface.co/settings/tokens)"
)
_MODEL_CARD = "README.md"
_ROWS = 200  # cutouts whose renderings are made at a time


def push_to_hub(
    run: str | os.PathLike,
    repo_id: str,
    private: bool = False,
    revision: str | None = None,
    base_model: str | None = None,
    license: str | None = None,
    with_heads: bool = False,
    dry_run: str | os.PathLike | None = None,
) -> str:
    """
    Publish an evaluated run: what [`export`] writes, in one commit. A push that fails or is interrupted leaves the Hub
    as it was; one that is repeated without changes makes no commit. Files of an earlier push that this one lacks are
    removed, other files in the repository are left alone.

    Args:
        run (`str` or `os.PathLike`): a finished run directory with its `evaluation/`.
        repo_id (`str`): such as `"me/lens-dino-vits8"`; that of a classifier ends in `-classifier`.
        private (`bool`, *optional*, defaults to `False`): for a new repository, whether others cannot see it.
        revision (`str`, *optional*): branch to commit to, made from main where it is missing; main by default.
        base_model (`str`, *optional*): Hub id of the backbone that a classifier was fine-tuned from.
        license (`str`, *optional*): the Hub's name of the licence of the weights; by default as [`export`] has it.
        with_heads (`bool`, *optional*, defaults to `False`): also publish the SSL checkpoint, in `pretraining/`.
        dry_run (`str` or `os.PathLike`, *optional*): write what would be published to this folder, publish nothing.

    Returns:
        `str`: the page of the model on the Hub; of a dry run the folder.

    Raises:
        [`InputError`]: the run has not finished or was not evaluated; `repo_id` does not fit it; nobody is logged in;
            or the Hub refuses or cannot be reached.
    """
    run = Path(run)
    facts = read_run(run)
    check_repo_id(repo_id, facts["task"] == "finetune", needs_token=dry_run is None)
    if read_evaluation(run) is None:
        raise InputError(
            f"{run} has not been evaluated, and no model is published without numbers: {_evaluation_of(run, facts)}"
        )

    def write(folder: Path) -> None:
        export(run, folder, base_model, name=repo_id, license=license, with_heads=with_heads)

    return publish(write, repo_id, "model", is_of_export, private, revision, dry_run)


def push_all(
    folder: str | os.PathLike = "model_cards",
    account: str | None = None,
    private: bool = False,
    dry_run: str | os.PathLike | None = None,
) -> list[str]:
    """
    Publish every model of a folder, each as the repository of its folder's name, backbones first. Their cards name
    these repositories, and a classifier's the backbone of the same folder whose name its own begins with, unless their
    recipes tell that its weights come from another run.

    Args:
        folder (`str` or `os.PathLike`, *optional*, defaults to `"model_cards"`): holds folders of [`export`].
        account (`str`, *optional*): a user or an organisation; by default whom the token belongs to.
        private (`bool`, *optional*, defaults to `False`): for new repositories, whether others cannot see them.
        dry_run (`str` or `os.PathLike`, *optional*): write what would be published to this folder, publish nothing.

    Returns:
        `list[str]`: the pages of the models on the Hub; of a dry run the folders.

    Raises:
        [`InputError`]: `folder` holds no model, or one without numbers, with a damaged file or with the name of
            another kind; nobody is logged in; or the Hub refuses or cannot be reached. What stands on the Hub by then
            stays; the same call goes on with the rest.
    """
    models = [
        path.parent
        for path in sorted(Path(folder).glob("*/config.json"))
        if (path.parent / _MODEL_CARD).is_file() and (path.parent / RECIPE).is_file()
    ]
    if not models:
        raise InputError(f"{folder} holds no model: give a folder of folders that lens-ssl export wrote")
    for model in models:
        if not (model / METRICS).is_file():
            raise InputError(
                f"{model} has no {METRICS}, and no model is published without numbers: evaluate its run and export it "
                "again, or take it out"
            )
    records = {model.name: _read_records(model) for model in models}
    recipes = {name: found[RECIPE] for name, found in records.items()}
    models.sort(key=lambda model: recipes[model.name]["task"] == "finetune")
    for model in models:
        is_classifier = recipes[model.name]["task"] == "finetune"
        if is_classifier != model.name.endswith("-classifier"):
            right = f"{model.name}-classifier" if is_classifier else model.name.removesuffix("-classifier")
            raise InputError(f"{model} holds a {'classifier' if is_classifier else 'backbone'}: call it {right}")
    if account is None:
        account = account_of_token()
    for model in models:
        check_repo_id(f"{account}/{model.name}", needs_token=dry_run is None)
    pages = []
    for model in models:
        write = partial(_write_export, model, records[model.name], account, _base_of(model.name, recipes))
        where = None if dry_run is None else Path(dry_run) / model.name
        pages.append(publish(write, f"{account}/{model.name}", "model", is_of_export, private, None, where))
    return pages


def _read_records(model: Path) -> dict[str, Any]:
    """
    What an export recorded, by file, without local paths; of its card the text.

    Raises:
        [`InputError`]: one of the files is damaged.
    """
    found = {}
    for name in (RECIPE, METRICS, CALIBRATION, _MODEL_CARD):
        path = model / name
        try:
            if name == _MODEL_CARD:
                found[name] = path.read_text(encoding="utf-8")
                ModelCard(found[name], ignore_metadata_errors=True)
            elif path.is_file():
                found[name] = without_local_paths(json.loads(path.read_text(encoding="utf-8")))
            is_damaged = name == RECIPE and read_recipe(model) is None
        except (OSError, ValueError, RecursionError, YAMLError):
            is_damaged = True
        if is_damaged:
            raise InputError(f"{path} is damaged: export the run again, or take {model} out")
    return found


def _base_of(name: str, recipes: dict[str, Any]) -> str | None:
    """Of a classifier the backbone with the longest name that its own begins with, where no recipe tells otherwise."""
    if recipes[name]["task"] == "pretrain" or recipes[name].get("init") == "scratch":
        return None
    before, runs = recipes[name], []
    while before := before.get("init_run") or before.get("init_recipe"):
        runs.append(before.get("run_id"))
    found = []
    for other, facts in recipes.items():
        is_known = runs and None not in [*runs, facts.get("run_id")]
        if name.startswith(f"{other}-") and facts["task"] == "pretrain" and (not is_known or facts["run_id"] in runs):
            found.append(other)
    return max(found, key=len, default=None)


def _write_export(model: Path, records: dict[str, Any], account: str, base: str | None, folder: Path) -> None:
    """
    A copy of an export whose card names repositories of the account; without what else lies in the folder, and without
    the local paths of a calibration that was stored there.
    """
    for path in model.rglob("*"):
        name = path.relative_to(model).as_posix()
        if is_of_export(name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / name)
    for name in records.keys() - {_MODEL_CARD}:
        write_json(folder / name, records[name])
    card = _renamed(records[_MODEL_CARD], model.name, account)
    if base is not None and "\nbase_model:" not in card:
        card = card.replace("---\n", f"---\nbase_model: {account}/{base}\n", 1)
    (folder / _MODEL_CARD).write_text(card, encoding="utf-8")


def _renamed(card: str, name: str, account: str) -> str:
    """A card of another name, which that of the folder may have been when it was exported, as that of a repository."""
    stated = str(getattr(ModelCard(card, ignore_metadata_errors=True).data, "model_name", None) or name)
    card = re.sub(rf'"([^"\s]*/)?({re.escape(stated)}|{re.escape(name)})"', f'"{account}/{name}"', card)
    if stated != name:
        header = yaml_dump({"name": name}).strip()
        card = re.sub(r"^model-index:\n- name: .*$", f"model-index:\n- {header}", card, count=1, flags=re.M)
        card = re.sub(rf"^# {re.escape(in_markdown(stated))}$", f"# {name}", card, count=1, flags=re.M)
    return card


def account_of_token() -> str:
    """
    The user whose token is at hand.

    Raises:
        [`InputError`]: nobody is logged in, or the Hub cannot be reached.
    """
    if get_token() is None:
        raise InputError(NO_TOKEN)
    try:
        return HfApi().whoami()["name"]
    except (HTTPError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"the Hub does not say whose token this is ({reason}): give --account") from error


def push_dataset(
    cutouts: Any,
    repo_id: str,
    license: str | None = None,
    origin: str | None = None,
    private: bool = False,
    revision: str | None = None,
    dry_run: str | os.PathLike | None = None,
) -> str:
    """
    Publish a dataset as Parquet with a card, which plain `datasets.load_dataset` and [`load_cutouts`] read and the
    Hub previews: a column `image` shows the cutouts in colour beside the `pixels`. In one commit, as [`push_to_hub`].
    Local paths in texts are shortened, in all splits alike; what is unique stays so.

    Args:
        cutouts (`DatasetDict`): as [`load_cutouts`] returns it.
        repo_id (`str`): such as `"me/lens-cutouts"`.
        license (`str`, *optional*):
            The Hub's name of the licence, such as `"cc-by-4.0"`; only for simulated cutouts there is a default,
            `"apache-2.0"`.
        origin (`str`, *optional*): where the cutouts come from, for the card: survey, release, selection, references.
        private, revision, dry_run: as for [`push_to_hub`].

    Returns:
        `str`: the page of the dataset on the Hub; of a dry run the folder.

    Raises:
        [`InputError`]: no licence for cutouts that were not simulated; nobody is logged in; or the Hub refuses or
            cannot be reached.
    """
    check_repo_id(repo_id, needs_token=dry_run is None)
    info = replace(info_of_splits(cutouts), name=repo_id)  # cards of models trained on it will name it by this
    if license is None and not info.simulated:
        raise InputError(
            f"a licence for {repo_id} is missing: give the one that its owners allow with --license, such as "
            "cc-by-4.0, or other"
        )
    license = license or "apache-2.0"
    origin = origin or ("simulated" if info.simulated else "not stated by the publisher")

    def write(folder: Path) -> None:
        _write_dataset(cutouts, folder, info, license, origin)

    def is_own(path: str) -> bool:
        return path in ("README.md", CARD_FILE) or bool(re.fullmatch(r"data/[^/]+\.parquet", path))

    return publish(write, repo_id, "dataset", is_own, private, revision, dry_run)


def check_repo_id(repo_id: str, is_classifier: bool | None = None, needs_token: bool = True) -> None:
    """
    What can be known before there is anything to publish.

    Args:
        repo_id (`str`): where to publish.
        is_classifier (`bool`, *optional*): whether it is a classifier or a backbone; `None` for a dataset.
        needs_token (`bool`, *optional*, defaults to `True`): whether somebody must be logged in.

    Raises:
        [`InputError`]: no valid id, another kind's name, or no token.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"repo_id {repo_id!r} is no id of the Hub: give one such as me/lens-dino-vits8") from error
    if "/" not in repo_id:
        raise InputError(f"repo_id {repo_id} names no account: give me/{repo_id}, with your name or organisation")
    if is_classifier is True and not repo_id.endswith("-classifier"):
        raise InputError(f"repo_id {repo_id} is for a backbone and the run is a classifier: give {repo_id}-classifier")
    if is_classifier is False and repo_id.endswith("-classifier"):
        raise InputError(
            f"repo_id {repo_id} is for a classifier and the run is a backbone: "
            f"give {repo_id.removesuffix('-classifier')}"
        )
    if needs_token and get_token() is None:
        raise InputError(NO_TOKEN)


def _evaluation_of(run: Path, facts: dict[str, Any]) -> str:
    """How to evaluate a run on the dataset that it was made with: with the options of its own command."""
    if not facts.get("command"):
        return f"call lens_ssl_hf.evaluate({str(run)!r}, cutouts) with the cutouts that it was trained on"
    names = {item.name for item in fields(DataArguments)} - {"like"}  # an evaluation takes the stretch of the run
    options, is_of_data = [], False
    for word in shlex.split(facts["command"]):
        if word.startswith("--"):
            is_of_data = word[2:].split("=")[0].replace("-", "_") in names
        options += [word] if is_of_data else []
    if not any(option.split("=")[0] == "--dataset" for option in options):  # it stood in the file of --config
        options += ["--dataset", "CUTOUTS"]
    return f"run {shlex.join(['lens-ssl', 'evaluate', str(run), *options])}"


def _write_dataset(cutouts: Any, folder: Path, info: CutoutInfo, license: str, origin: str) -> None:
    names = _harmless_texts(cutouts)
    with temporary_folder("lens_ssl_hf-pictures") as temporary:
        shown = DatasetDict(
            {name: _as_shown(split, info, names, temporary / f"{name}.arrow") for name, split in cutouts.items()}
        )
        card = render_dataset_card(shown, card_header(shown), repo_id=info.name, license=license, origin=origin)
        save_cutouts(shown, folder, str(card))


def _harmless_texts(cutouts: Any) -> dict[str, dict[str, str]]:
    """Of the columns with local paths what to publish for each text, in all splits alike."""
    columns = {name for split in cutouts.values() for name, kind in split.features.items() if "string" in repr(kind)}
    found = {}
    for column in columns:
        splits = [split.with_format(None) for split in cutouts.values() if column in split.column_names]
        texts = sorted({text for split in splits for text in _texts(split[column][:])})
        names = dict(zip(texts, harmless_names(texts), strict=True))
        if any(text != name for text, name in names.items()):
            found[column] = names
    return found


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value of Python."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)


def _with_names(value: Any, names: dict[str, str]) -> Any:
    """A value of Python with other texts."""
    if isinstance(value, dict):
        return {key: _with_names(one, names) for key, one in value.items()}
    if isinstance(value, list):
        return [_with_names(one, names) for one in value]
    return names[value] if isinstance(value, str) else value


def _as_shown(split: Any, info: CutoutInfo, names: dict[str, dict[str, str]], cache: Path) -> Any:
    """A split with the texts of [`_harmless_texts`] and a first column `image`, PNG files of the colour renderings."""
    changed = split.with_format(None).select_columns([column for column in names if column in split.column_names])

    def render(pixels: Any) -> dict[str, Any]:
        file = io.BytesIO()
        PILImage.fromarray(colour_image(np.asarray(pixels), info.bands)).save(file, format="PNG")
        return {"bytes": file.getvalue(), "path": None}

    def show(pixels: Any, rows: list[int]) -> dict[str, list[Any]]:
        texts = changed[rows] if changed.column_names else {}
        texts = {column: _with_names(values, names[column]) for column, values in texts.items()}
        return {PICTURE_COLUMN: [render(one) for one in pixels], **texts}

    shown = split.with_format("numpy").map(
        show,
        with_indices=True,
        input_columns="pixels",
        batched=True,
        batch_size=_ROWS,
        writer_batch_size=_ROWS,
        features=Features({**split.features, PICTURE_COLUMN: Image()}),
        cache_file_name=str(cache),
        new_fingerprint="pictures",
        desc="Rendering cutouts",
    )
    shown = shown.with_format(None).select_columns([PICTURE_COLUMN, *split.column_names])
    shown.info.description = info.to_json()
    return shown


def publish(
    write: Callable[[Path], None],
    repo_id: str,
    repo_type: str,
    is_own: Callable[[str], bool],
    private: bool,
    revision: str | None,
    dry_run: str | os.PathLike | None,
) -> str:
    """Let `write` fill `dry_run`, or a temporary folder that is then uploaded."""
    with temporary_folder("lens_ssl_hf-push") as temporary:
        folder = temporary / repo_id.split("/")[-1] if dry_run is None else Path(dry_run)
        try:
            write(folder)
        except OSError as error:
            raise InputError(
                f"cannot write what is to be published to {folder} ({error.strerror or error}): make room, or set "
                "TMPDIR to a larger disk"
            ) from error
        return upload(folder, repo_id, repo_type, is_own, private, revision) if dry_run is None else str(folder)
