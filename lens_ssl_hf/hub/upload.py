"""A folder -> a repository on the Hub, in one commit that is there whole or not at all."""

import glob
import logging
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, close_session
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .. import __version__
from ..errors import InputError, interrupted_later

logger = logging.getLogger(__name__)

WAITS = (1, 4, 16)  # seconds between tries, beside those that huggingface_hub makes of each file
LONGEST_WAIT = 300  # seconds that are waited for a Hub which asks for patience
_PASSING = (408, 409, 412, 429, 500, 502, 503, 504)  # 409 and 412: somebody else commits at the same moment
_NO_ANSWER = (HTTPError, ConnectionError, TimeoutError)
_AGAIN = "nothing was published, run the same command again"


def upload(
    folder: Path,
    repo_id: str,
    repo_type: str,
    is_own: Callable[[str], bool],
    private: bool = False,
    revision: str | None = None,
) -> str:
    """
    Make a repository on the Hub hold a folder, in one commit; what changes nothing makes none. Where the trouble may
    pass it is tried again, later and later; in the end what was begun on the Hub is taken back.

    Args:
        folder (`Path`): what to publish.
        repo_id (`str`), repo_type (`str`): the repository; it is made where it is missing.
        is_own (`Callable`):
            Whether a path in the repository comes from an earlier upload, and goes if `folder` lacks it.
        private (`bool`, *optional*, defaults to `False`): for a new repository, whether others cannot see it.
        revision (`str`, *optional*): branch to commit to, made from main where it is missing; main by default.

    Returns:
        `str`: address of the page.

    Raises:
        [`InputError`]: the Hub refuses or cannot be reached, or `private` and the repository is public.
    """
    target = _Target(repo_id, repo_type, revision)
    try:
        for wait in (*WAITS, None):
            try:
                return target.commit(folder, is_own, private)
            except InputError:
                raise
            except Exception as error:  # huggingface_hub passes on those of its transports
                # huggingface_hub wraps what happened to one file.
                cause = error.__cause__ if type(error) is RuntimeError and error.__cause__ else error
                problem, mend = _explain(cause, repo_id)
                patience = _patience(cause, wait)
                if patience is None:
                    raise InputError(f"{problem}: {mend}") from error
                logger.warning("%s: trying again in %d s", problem, patience)
                time.sleep(patience)
                close_session()  # the next try gets new connections
    except BaseException:
        target.take_back()
        raise


class _Target:
    """The branch of a repository that is committed to, and what of it was made for that."""

    def __init__(self, repo_id: str, repo_type: str, revision: str | None):
        self.api, self.repo, self.revision = HfApi(), {"repo_id": repo_id, "repo_type": repo_type}, revision
        # How to remove what was made, with which arguments, and whether it is still as it was made.
        self.made: list[tuple[Callable, dict[str, str], Callable[[Any], bool]]] = []

    def commit(self, folder: Path, is_own: Callable[[str], bool], private: bool) -> str:
        """One try; returns the address of the page."""
        head = self._head(private)
        # With its parent named, a commit that somebody else makes meanwhile is not overwritten unseen.
        self.api.upload_folder(
            **self.repo,
            folder_path=folder,
            delete_patterns=[glob.escape(name) for name in _files(head) if is_own(name)],
            commit_message=f"Publish with lens_ssl_hf {__version__}",
            revision=self.revision,
            parent_commit=head.sha,
        )
        prefix = "" if self.repo["repo_type"] == "model" else f"{self.repo['repo_type']}s/"
        branch = f"/tree/{self.revision}" if self.revision else ""
        return f"{self.api.endpoint}/{prefix}{self.repo['repo_id']}{branch}"

    def _head(self, private: bool) -> Any:
        """The newest commit of the branch, which is made where it is missing, as `huggingface_hub` describes it."""
        try:
            head = self.api.repo_info(**self.repo)
        except RepositoryNotFoundError:
            sdk = "gradio" if self.repo["repo_type"] == "space" else None
            create = partial(self.api.create_repo, private=private or None, space_sdk=sdk)
            self._make(create, self.api.delete_repo, {}, lambda info: _files(info) <= {".gitattributes"})
            head = self.api.repo_info(**self.repo)
        if private and not head.private:
            raise InputError(
                f"{self.repo['repo_id']} is on the Hub already and is public: make it private in its settings, or "
                "leave private out"
            )
        if self.revision is None:
            return head
        try:
            return self.api.repo_info(**self.repo, revision=self.revision)
        except RevisionNotFoundError:
            options = {"branch": self.revision}
            self._make(self.api.create_branch, self.api.delete_branch, options, lambda info: info.sha == head.sha)
            return head

    def _make(
        self, create: Callable, remove: Callable, options: dict[str, str], is_untouched: Callable[[Any], bool]
    ) -> None:
        """
        Make a repository or a branch and note it: a signal waits until it is known whether it is there, and where the
        answer is lost it may be.
        """
        failure = None
        with interrupted_later():
            try:
                create(**self.repo, **options)
            except Exception as error:
                failure = error
            if not isinstance(failure, HfHubHTTPError):  # the Hub's own refusal
                self.made.append((remove, options, is_untouched))
        if failure is not None:
            raise failure

    def take_back(self) -> None:
        """Remove the branch and the repository that were made for a commit that did not come about."""
        while self.made:
            remove, options, is_untouched = self.made.pop()
            try:
                if is_untouched(self.api.repo_info(**self.repo, revision=options.get("branch"))):
                    remove(**self.repo, **options)
            except (RepositoryNotFoundError, RevisionNotFoundError):
                continue  # it was not made, after all
            except (HTTPError, OSError) as error:
                logger.warning("%s stays on the Hub, empty (%s)", self.repo["repo_id"], _reason(error))


def _files(info: Any) -> set[str]:
    return {file.rfilename for file in info.siblings or ()}


def _patience(error: Exception, wait: float | None) -> float | None:
    """Seconds until the next try, as the Hub asks for or else `wait`; `None` where trying again is of no use."""
    if wait is None or isinstance(error, OfflineModeIsEnabled):
        return None
    if not isinstance(error, HfHubHTTPError):
        return wait if isinstance(error, _NO_ANSWER) else None
    if error.response.status_code not in _PASSING:
        return None
    headers = error.response.headers
    # Retry-After: 42, or as the Hub says it, RateLimit: "api";r=0;t=42
    asked = re.fullmatch(r"(\d+)", headers.get("retry-after", "")) or re.search(
        r";r=0;t=(\d+)", headers.get("ratelimit", "")
    )
    patience = float(asked.group(1)) if asked else wait
    return patience if patience <= LONGEST_WAIT else None


def _explain(error: Exception, repo_id: str) -> tuple[str, str]:
    """What happened, and the mend, for people."""
    reason = _reason(error)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set", "unset it to publish"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status == 401:
            return (
                f"the Hub does not accept your token for {repo_id} (401)",
                "log in again with `hf auth login`, or correct HF_TOKEN",
            )
        if status == 403:
            return (
                f"your token may not write to {repo_id} (403)",
                "log in with one that may, or choose another repo_id",
            )
        if status in _PASSING:
            return f"the Hub cannot take {repo_id} just now ({reason})", f"{_AGAIN} later"
        return f"the Hub refuses {repo_id} ({status}, {error.server_message or reason})", _AGAIN
    if isinstance(error, _NO_ANSWER):
        return f"the connection to {HfApi().endpoint} failed ({reason})", f"{_AGAIN} when it is back"
    return f"publishing {repo_id} failed ({reason})", _AGAIN


def _reason(error: Exception) -> str:
    """What an error says, on one line and without the queries of addresses: those of uploads are signed."""
    text = str(error).strip()
    if isinstance(error, HfHubHTTPError):  # below stand the request's id, links and advice
        text = text.split("\n")[0]
    return re.sub(r"\?[^\s']*", "", " ".join(text.split())).rstrip(".") or type(error).__name__
