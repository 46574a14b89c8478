"""`kleiber push`: exports a run as a Hugging Face folder and uploads it to the hub.

The hub is that of the environment variable HF_ENDPOINT, and the token that of HF_TOKEN or of `hf auth login`.
"""

from __future__ import annotations

import re

from kleiber.config import hub
from kleiber.config.errors import ConfigError
from kleiber.config.hub_failures import failure
from kleiber.records.locks import scratch_folder
from kleiber.runs.huggingface import export

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
REASONS = {401: "the token is not valid", 403: "the token may not write there", 404: "there is no such owner or branch"}


def push(
    run: str, repository: str, private: bool = False, revision: str | None = None, license: str | None = None
) -> str:
    """Uploads the final weights of RUN or RUN/STAGE with tokenizer and model card; returns the address of the commit.

    repository  OWNER/NAME; it is created if it does not exist
    private     creates it as a private repository; the visibility of one that exists does not change
    revision    branch to which the files are committed, created if it does not exist; None for main
    license     of the weights, as in `export`

    Raises ConfigError for a malformed name, without a token, where the hub cannot be reached, and where it refuses.
    """
    if not REPOSITORY.fullmatch(repository):
        raise ConfigError(f"{repository} must be OWNER/NAME, such as jane/tiny-gpt")
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HfHubHTTPError

    if get_token() is None:
        raise ConfigError(f"there is no token to write to {repository}: set HF_TOKEN, or run `hf auth login`")
    if not hub.reachable():
        offline = " because HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else ""
        raise ConfigError(f"{constants.ENDPOINT} cannot be reached{offline}, so {repository} cannot be written")
    with scratch_folder("kleiber-push-") as scratch:
        folder = scratch / "model"
        export(run, folder, license, repository)
        api = HfApi()
        try:
            api.create_repo(repository, private=private or None, exist_ok=True)
            if revision is not None:
                api.create_branch(repository, branch=revision, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repository, folder_path=folder, revision=revision, commit_message=f"Upload {run} from kleiber"
            )
        except HfHubHTTPError as error:
            code = error.response.status_code
            reason = REASONS.get(code) or error.server_message or str(error).partition("\n")[0]
            raise ConfigError(f"the hub refuses to write {repository} (HTTP {code}): {reason}") from error
        except Exception as error:  # each version has errors of another client library
            if (why := failure(error, repository, "model")) is None:
                raise
            raise ConfigError(f"{repository} cannot be written: {why}") from error
    return commit.commit_url
