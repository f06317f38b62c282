"""A model to a Hugging Face repository, by the hub's own client.

The client sends large files first and skips those that the hub has, so that a push that broke goes on with
the next file; nothing shows before one commit holds all. Then the hub is asked for every file's digest.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from yarn_ops.errors import ReleaseError
from yarn_ops.hub import asked_digests, faults_of
from yarn_ops.records import CARD
from yarn_ops.store.manifest import Manifest


def push_to_hub(
    folder: Path,
    manifest: Manifest,
    repository: str,
    *,
    public: bool,
    message: str,
    of_a_model: Callable[[str], bool],
) -> str:
    """The address of the commit. Files that are named `of_a_model` and are not of this one it removes.

    A repository that is not there yet is made, private unless `public`. ReleaseError in one line.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
    from huggingface_hub.utils import disable_progress_bars

    require_card(folder, manifest)
    if not sys.stderr.isatty():
        disable_progress_bars()
    api = HfApi(library_name="yarn-ops")
    try:
        api.create_repo(repository, private=not public, exist_ok=True)
        there = api.list_repo_files(repository)
        added = [CommitOperationAdd(name, str(folder / name)) for name in manifest.files]
        removed = [
            CommitOperationDelete(name) for name in there if name not in manifest.files and of_a_model(name)
        ]
        commit = api.create_commit(repository, [*added, *removed], commit_message=message)
    except HFValidationError as error:
        raise ReleaseError(f"hf:{repository}: {_line(error)}; write hf:OWNER/NAME") from None
    except LocalTokenNotFoundError:
        raise ReleaseError(f"hf:{repository}: wants a token; set HF_TOKEN to one that may write") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        remedy = "set HF_TOKEN to one that may write" if status in (401, 403, 404) else "push again"
        raise ReleaseError(f"hf:{repository}: {_line(error)}; {remedy}") from None
    except Exception as error:  # HTTP, TLS, proxies: whatever the hub's client meets
        raise ReleaseError(f"hf:{repository}: cannot be sent ({_line(error)}); push again") from None
    told = asked_digests(repository, commit.oid)
    if told is None:
        raise ReleaseError(f"hf:{repository}: does not tell what it holds now; push again")
    faults = faults_of(folder, {name: told.get(name, "none") for name in manifest.files})
    if faults:
        names = ", ".join(fault.name for fault in faults)
        raise ReleaseError(f"hf:{repository}: holds other bytes of {names} than were sent; push again")
    return str(commit.commit_url)


def require_card(folder: Path, manifest: Manifest) -> None:
    """ReleaseError where the model card is missing, or its front matter is not what the hub reads."""
    import yaml  # type: ignore[import-untyped]
    from huggingface_hub import ModelCardData, metadata_load

    if CARD not in manifest.files:
        raise ReleaseError(f"{folder}: has no {CARD}; push a released model, which has its card")
    try:
        data = ModelCardData(**(metadata_load(folder / CARD) or {}))
    except (ValueError, TypeError, OSError, yaml.YAMLError) as error:
        raise ReleaseError(f"{folder / CARD}: its front matter cannot be read ({_line(error)})") from None
    if not data.library_name:
        raise ReleaseError(f"{folder / CARD}: its front matter names no library_name; push a released model")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
