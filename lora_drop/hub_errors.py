"""Failures of the Hugging Face Hub, each as a sentence that says what to do: the one place that knows its exceptions."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from json import JSONDecodeError

from datasets.exceptions import DatasetsError
from huggingface_hub import get_token
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

FAILURES = (HTTPError, OSError, ValueError, RuntimeError, DatasetsError)
"""What the Hub's libraries raise where a request, a download or an answer fails. `HTTPError` is that of the HTTP library which huggingface_hub uses;
OSError is also a full disk; ValueError an answer that is no JSON; RuntimeError the fast transfer (hf_xet)."""

AGAIN = "The same command continues: files that are complete are kept."
LOGIN = "Log in with `hf auth login` (or set HF_TOKEN)"
UNREACHABLE = ("ConnectError", "ProxyError", "ConnectionError", "ConnectionRefusedError", "gaierror")
LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def explain(error: BaseException, name: str, what: str, revision: str, page: str, otherwise: str) -> str:
    """Return what has failed, and the remedy.

    Args:
        error: one of FAILURES; also its causes are looked at.
        name: of the repository.
        what: the repository in words (`the model org/name`).
        revision: the branch, tag or commit that was asked for.
        page: its address.
        otherwise: what to do without the Hub; said where no other remedy is at hand.
    """
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, HfHubHTTPError):
            return _refused(cause, name, what, revision, page, otherwise)
    for cause in causes:
        sentence = _broken(cause, what)
        if sentence:
            return f"{sentence} {otherwise}".strip()
    lines = str(error).strip().splitlines() or [""]
    return f"The Hub cannot give {what} ({type(error).__name__}: {lines[0]}). {otherwise}".strip()


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _refused(error: HfHubHTTPError, name: str, what: str, revision: str, page: str, otherwise: str) -> str:
    """The Hub has answered, with an error."""
    token, code = get_token() is not None, error.response.status_code
    said = f", {error.server_message}" if error.server_message else ""
    if isinstance(error, GatedRepoError):
        first = "Accept them" if token else f"{LOGIN}, and accept them"
        return f"{name} is gated: the Hub gives it to those who have accepted its terms. {first} at {page}"
    if isinstance(error, RevisionNotFoundError):
        return f"{name} has no revision {revision!r} on the Hub. Its branches, tags and commits: {page}/commits/main"
    if isinstance(error, RepositoryNotFoundError):
        kind = what.removeprefix("the ")
        if token:
            return f"The Hub has no {kind}, or your token may not read it. Check the name, and the token with `hf auth whoami`."
        return f"The Hub has no {kind}, or it is private and you are not logged in. Check the name. {LOGIN} if it is private."
    if isinstance(error, DisabledRepoError):
        return f"The Hub has disabled {what}: {page}"
    if code == 401:
        return f"The Hub does not accept your token (401) for {what}. Log in again with `hf auth login`, or correct HF_TOKEN."
    if code == 403:
        return f"The Hub refuses you {what} (403{said}). Accept its terms at {page} if it has any, or use a token that may read it."
    if code == 404:
        return f"The Hub does not find a file of {what} (404{said}): {page}"
    if code == 429:
        more = "" if token else f" {LOGIN}: more requests are then allowed."
        return f"The Hub asks you to wait (429, too many requests){_seconds(error)}. Wait some minutes.{more} {AGAIN}"
    if code >= 500:
        return f"The Hub fails on its side ({code}) to give {what}. Try again later. {AGAIN} {otherwise}".strip()
    return f"The Hub does not give {what} ({code}{said}). {otherwise}".strip()


def _seconds(error: HfHubHTTPError) -> str:
    wait = error.response.headers.get("Retry-After", "")
    return f": {wait} seconds" if wait.isdigit() else ""


def _broken(error: BaseException, what: str) -> str:
    """The Hub has not answered, or not to the end; an empty string for other errors."""
    kind = type(error).__name__
    if isinstance(error, OfflineModeIsEnabled):
        return f"{what.replace('the ', 'The ', 1)} is not on this machine, and HF_HUB_OFFLINE forbids asking the Hub."
    if "Timeout" in kind:
        return (
            f"The Hub has not answered in time ({kind}) for {what}. {AGAIN} On a slow network set HF_HUB_ETAG_TIMEOUT and "
            "HF_HUB_DOWNLOAD_TIMEOUT to more than 10 seconds."
        )
    if kind in UNREACHABLE:
        return f"The Hub cannot be reached for {what} ({kind}): there is no network, or HTTPS_PROXY or HF_ENDPOINT is wrong."
    if isinstance(error, JSONDecodeError):
        return f"What answers for {what} is not the Hub: a login page of the network, or HF_ENDPOINT is wrong."
    if isinstance(error, HTTPError) or "Consistency check failed" in str(error):
        return f"The transfer of {what} was cut off ({kind}). {AGAIN}"
    if isinstance(error, OSError) and error.errno in LOCAL:
        return f"{what.replace('the ', 'The ', 1)} cannot be stored ({error.strerror}). Make room, or name another cache folder with HF_HOME."
    return ""
