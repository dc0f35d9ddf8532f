"""Models and tokenizers that cannot be loaded: named, explained, and within seconds."""

import json
import time
from types import SimpleNamespace

import pytest
from huggingface_hub import errors

from rlhf_ray.demo.tokenizer import train_tokenizer
from rlhf_ray.errors import ConfigError
from rlhf_ray.hub import check_model, explain_hub_error, load_tokenizer, looks_like_path

pytestmark = pytest.mark.unit


def answer(status: int) -> SimpleNamespace:
    """As much of an HTTP response as the hub's errors look at."""
    return SimpleNamespace(status_code=status, headers={}, request=None)


def network_down(*args, **kwargs):
    raise OSError("Name or service not known")


def hub_raises(monkeypatch, error):
    def ask(*args, **kwargs):
        raise error

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", ask)


@pytest.fixture(autouse=True)
def online(monkeypatch):
    """As on a user's machine, whatever environment the tests run in."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("name", ["/no/such/folder", "./missing", "~/missing", "runs/demo/policy", "C:\\models"])
@pytest.mark.parametrize("load", [check_model, load_tokenizer])
def test_a_path_that_leads_nowhere_is_not_taken_for_a_hub_name(monkeypatch, name, load):
    hub_raises(monkeypatch, AssertionError("the hub was asked"))
    with pytest.raises(ConfigError, match="does not exist"):
        load(name)


@pytest.mark.parametrize(("name", "is_path"), [("gpt2", False), ("Qwen/Qwen2.5-0.5B", False), ("a/b/c", True)])
def test_hub_names_and_paths_are_told_apart(name, is_path):
    assert looks_like_path(name) is is_path


def test_a_folder_without_config_is_no_model(tmp_path):
    with pytest.raises(ConfigError, match=r"no config\.json"):
        check_model(str(tmp_path))


def test_a_file_is_no_model(tmp_path):
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(ConfigError, match="is a file"):
        check_model(str(file))


def test_a_folder_with_config_is_its_own_source(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert check_model(str(tmp_path)) == str(tmp_path)


@pytest.mark.parametrize("load", [check_model, load_tokenizer])
def test_an_unreachable_hub_fails_at_once(monkeypatch, empty_cache, load):
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", network_down)
    start = time.perf_counter()
    with pytest.raises(ConfigError, match=r"'some-org/some-model'.*cannot be reached.*local path"):
        load("some-org/some-model")
    assert time.perf_counter() - start < 5


def test_the_real_client_gives_up_within_seconds(monkeypatch, empty_cache):
    # A closed port on this machine stands in for a network that is down: the client's default is to retry for 23 s.
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    start = time.perf_counter()
    with pytest.raises(ConfigError, match="cannot be reached"):
        check_model("some-org/some-model")
    assert time.perf_counter() - start < 8


def test_offline_mode_is_named(monkeypatch, empty_cache):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        check_model("some-org/some-model")


def test_an_unreachable_hub_falls_back_to_the_cache(monkeypatch, empty_cache):
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", network_down)
    repo = empty_cache / "models--some-org--some-model"
    snapshot = repo / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    assert check_model("some-org/some-model") == str(snapshot)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (errors.GatedRepoError("403", response=answer(403)), r"gated: accept its licence.*HF_TOKEN.*local folder"),
        (errors.RepositoryNotFoundError("404", response=answer(404)), r"neither a local folder nor on the hub"),
        (errors.RevisionNotFoundError("no v9", response=answer(404)), r"no such revision"),
        (errors.RemoteEntryNotFoundError("404", response=answer(404)), r"holds no config\.json"),
        (errors.HfHubHTTPError("503", response=answer(503)), r"cannot be reached"),
    ],
)
def test_what_the_hub_answers_is_explained(monkeypatch, empty_cache, error, says):
    hub_raises(monkeypatch, error)
    with pytest.raises(ConfigError, match=says):
        check_model("some-org/some-model")


def test_the_cause_behind_a_wrapped_error_is_found():
    try:
        try:
            raise errors.GatedRepoError("403", response=answer(403))
        except errors.GatedRepoError as gated:
            raise OSError("You are trying to access a gated repo.") from gated
    except OSError as wrapped:
        explained = explain_hub_error("meta/llama", wrapped)
    assert isinstance(explained, ConfigError)
    assert "'meta/llama' is gated" in str(explained)


def test_an_unknown_error_keeps_its_message():
    assert "disk full" in str(explain_hub_error("m", RuntimeError("\ndisk full\ntrace")))


@pytest.fixture
def tokenizer_folder(tmp_path):
    train_tokenizer(["def f(x)", "Return x."]).save_pretrained(tmp_path)
    return tmp_path


def edit_tokenizer_config(folder, **changes):
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config.update(changes)
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def test_a_tokenizer_without_pad_pads_with_eos(tokenizer_folder):
    assert load_tokenizer(str(tokenizer_folder)).pad_token == "<|pad|>"
    edit_tokenizer_config(tokenizer_folder, pad_token=None)
    assert load_tokenizer(str(tokenizer_folder)).pad_token == "<|end|>"


def test_a_tokenizer_without_eos_is_refused(tokenizer_folder):
    edit_tokenizer_config(tokenizer_folder, eos_token=None)
    with pytest.raises(ConfigError, match="names no end-of-text token"):
        load_tokenizer(str(tokenizer_folder))


def test_a_folder_without_tokenizer_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match="No tokenizer can be loaded from"):
        load_tokenizer(str(tmp_path))
