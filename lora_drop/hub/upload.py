"""Upload of a folder to a repository on the Hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import get_token

from lora_drop.errors import UserError
from lora_drop.hub.repo import LOGIN, Repo, asking, forbidden_by


def check_upload(name: str) -> None:
    """Raise UserError, before any work, if an upload cannot succeed: invalid name, no token, or offline mode."""
    if "/" not in Repo.parse(name).name or "@" in name:
        raise UserError(f"--push {name}: name the repository as organisation/name.")
    forbidden = forbidden_by(False)
    if forbidden:
        raise UserError(f"--push contacts the Hub, which {forbidden} forbids.")
    if get_token() is None:
        raise UserError(f"--push needs a token that may write. {LOGIN}.")


def upload(folder: Path, name: str, private: bool) -> str:
    """Upload a folder to a model repository, created if missing, and return its URL. Raises UserError."""
    repo = Repo.parse(name)
    try:
        with asking(repo, "") as api:
            api.create_repo(repo.name, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo.name, folder_path=folder, commit_message="Upload with lora-drop")
    except UserError as error:
        raise UserError(
            f"The upload to {repo.name} failed; its complete content is in {folder}. The token must be allowed to "
            f"write to that repository. {error}"
        ) from error
    return repo.page
