"""Models and tokenizers by local folder or Hugging Face hub name: checked in seconds, with errors that say what to do.

The hub client retries an unreachable hub for some 23 seconds per file. So the hub is asked once, with a short deadline,
before any library is let loose on it; when it is out of reach, what the local cache holds is used instead.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlhf_ray.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RepoType = Literal["model", "dataset"]
HubAnswer = Literal["found", "no such file", "out of reach"]

HUB_TIMEOUT_S = 5.0
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def check_model(name: str, revision: str | None = None) -> str:
    """Where to load the model from: its folder, its hub name, or its folder in the local cache when offline.

    Asks the hub for the configuration file only. Raises ConfigError for a folder that is no model and for a hub name
    that is absent, gated, or neither reachable nor cached.
    """
    folder = _local_folder(name)
    if folder is None:
        source, answer = _hub_source(name, "config.json", revision)
        if answer == "no such file":
            raise ConfigError(f"The hub's '{name}' holds no config.json: it is no model that transformers can load.")
        return source
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"The folder '{name}' is no saved model: it holds no config.json. "
            "Give a folder written by save_pretrained, or a hub name."
        )
    return str(folder)


def load_tokenizer(
    name: str, revision: str | None = None, trust_remote_code: bool = False
) -> "PreTrainedTokenizerBase":
    """The tokenizer at a folder or hub name; one without a pad token pads with its end-of-text token.

    Raises ConfigError where `check_model` would, for a folder without a tokenizer, and for one without an eos token.
    """
    folder = _local_folder(name)
    source = str(folder) if folder else _hub_source(name, "tokenizer_config.json", revision)[0]

    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as exc:
        if source == name and folder is None:
            raise explain_hub_error(name, exc) from exc
        raise ConfigError(f"No tokenizer can be loaded from '{name}': {_first_line(exc)}") from exc
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"The tokenizer '{name}' names no end-of-text token, so a response could never end. "
            "Set eos_token in its tokenizer_config.json, or choose another with model.tokenizer."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def ask_hub(name: str, filename: str, revision: str | None = None, repo_type: RepoType = "model") -> HubAnswer:
    """Ask the hub, within `HUB_TIMEOUT_S`, for one file of a repository.

    Raises ConfigError when the hub answers but refuses: absent, gated, unknown revision.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    try:
        get_hf_file_metadata(hf_hub_url(name, filename, revision=revision, repo_type=repo_type), timeout=HUB_TIMEOUT_S)
    except EntryNotFoundError:
        return "no such file"
    except HfHubHTTPError as exc:
        if exc.response.status_code == 429 or exc.response.status_code >= 500:
            return "out of reach"
        raise explain_hub_error(name, exc, repo_type) from exc
    except Exception:  # the client's network errors share no base class: httpx's, requests', OfflineModeIsEnabled
        return "out of reach"
    return "found"


def looks_like_path(name: str) -> bool:
    """Whether a name that does not exist here was meant as a local path rather than as a hub name."""
    return name.startswith(("/", ".", "~")) or not _HUB_NAME.fullmatch(name)


def explain_hub_error(name: str, exc: BaseException, repo_type: RepoType = "model") -> ConfigError:
    """What went wrong with the hub, as a ConfigError that says what to do. For errors raised while loading `name`."""
    from huggingface_hub import errors

    causes = list(_causes(exc))

    def any_of(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if any_of(errors.GatedRepoError):
        return ConfigError(
            f"The {repo_type} '{name}' is gated: accept its licence on its hub page and set HF_TOKEN to a token of "
            "that account, or give a local folder that holds it."
        )
    if any_of(errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError):
        return unreachable(name, repo_type)
    if any_of(errors.RevisionNotFoundError):
        return ConfigError(f"The {repo_type} '{name}' has no such revision on the hub: {_first_line(exc)}")
    if any_of(errors.RepositoryNotFoundError, errors.HFValidationError):
        return ConfigError(
            f"The {repo_type} '{name}' is neither a local folder nor on the hub. Check the spelling; for a private one "
            "set HF_TOKEN."
        )
    if any_of(errors.EntryNotFoundError):
        return ConfigError(f"The hub's '{name}' is no usable {repo_type}: {_first_line(exc)}")
    return ConfigError(f"Loading the {repo_type} '{name}' failed: {_first_line(exc)}")


def unreachable(name: str, repo_type: RepoType = "model") -> ConfigError:
    """The error for a hub name that can be neither fetched nor found in the local cache."""
    from huggingface_hub import constants

    offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached from here"
    return ConfigError(
        f"The {repo_type} '{name}' is no local folder or file, is not in the local cache, and {offline}. "
        "Give a local path, or download it first where there is a network (hf download)."
    )


def _local_folder(name: str) -> Path | None:
    """The existing folder that `name` is, or None for a hub name. Raises ConfigError for a path that leads nowhere."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ConfigError(f"'{name}' is a file; a model is a folder written by save_pretrained, or a hub name.")
    if looks_like_path(name):
        raise ConfigError(f"The folder '{name}' does not exist (looked in {Path.cwd()}), and it is no hub name either.")
    return None


def _hub_source(name: str, filename: str, revision: str | None) -> tuple[str, HubAnswer]:
    """The hub name itself when the hub answers, else the cached snapshot's folder; and what the hub answered."""
    from huggingface_hub import try_to_load_from_cache

    answer = ask_hub(name, filename, revision)
    if answer != "out of reach":
        return name, answer
    cached = try_to_load_from_cache(name, filename, revision=revision)
    if not isinstance(cached, str):
        raise unreachable(name)
    return str(Path(cached).parent), answer


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    while exc is not None:
        yield exc
        exc = exc.__cause__ or exc.__context__


def _first_line(exc: BaseException) -> str:
    return next((line for line in str(exc).splitlines() if line.strip()), type(exc).__name__)
