"""Files from the Hugging Face Hub, put where a model expects them."""

from __future__ import annotations

from pathlib import Path

from astrolabe_ray.config.base_models import HubFiles
from astrolabe_ray.errors import ConfigError


def fetch(files: HubFiles) -> None:
    """Download what is absent or was cut off, with progress bars.

    Raises ConfigError when the hub can't be reached, refuses, or has no such repository or file.
    """
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        snapshot_download(files.repo_id, local_dir=files.folder, allow_patterns=list(files.names))
    except GatedRepoError:
        raise ConfigError(
            f"{files.repo_id} wants its licence accepted: do so on its page on the hub, then set HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise ConfigError(
            f"the hub has no repository {files.repo_id}, or HF_TOKEN may not see it; {_by_hand(files)}"
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, httpx.HTTPError) as reason:
        raise ConfigError(
            f"can't fetch {files.repo_id}: {_first_line(reason)} Go online, with HF_HUB_OFFLINE not set, "
            f"{_by_hand(files)}"
        ) from None
    absent = [str(path) for path in files.paths if not path.exists()]
    if absent:  # a hub that does not answer is no error to the library where the folder exists
        raise ConfigError(
            f"{files.repo_id} gave no {', '.join(absent)}: the hub was not reached or does not have it; "
            f"{_by_hand(files)}"
        )


def _by_hand(files: HubFiles) -> str:
    return f"or put {', '.join(files.names)} of {files.repo_id} into {Path(files.folder).resolve()} by hand"


def _first_line(reason: Exception) -> str:
    return (str(reason).strip().splitlines() or [type(reason).__name__])[0].rstrip(".") + "."
