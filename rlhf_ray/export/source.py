"""What is exported: the policy or reward model of a run, any saved model, or a PEFT adapter on its base."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import yaml
from peft import PeftConfig, PeftModel
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_ray.config.common import LoraSection, ModelSection, Quantization
from rlhf_ray.errors import ConfigError
from rlhf_ray.hub import check_model, explain_hub_error
from rlhf_ray.models.load import load_causal_lm, load_scalar_lm
from rlhf_ray.tracking.record import CONFIG_FILE, POLICY_FOLDER

Kind = Literal["policy", "reward model"]

ADAPTER_FILE = "adapter_config.json"


@dataclass(frozen=True)
class Source:
    """A model that can be loaded, and what is known of where it came from."""

    given: str  # as the user named it
    model: str  # folder or hub name of the model, or of the adapter where that is all there is
    kind: Kind
    run: Path | None = None  # the run that trained it
    adapter: Path | None = None  # folder of its adapter alone
    quantization: Quantization | None = None  # of the base that the adapter was trained on
    revision: str | None = None
    trust_remote_code: bool = False

    @classmethod
    def find(cls, given: str | Path, revision: str | None = None, trust_remote_code: bool = False) -> "Source":
        """The source at a run's folder, a model's or adapter's folder, or a hub name.

        Raises:
            ConfigError: nothing that can be loaded is there, or the run has not saved its model yet.
        """
        name = str(given)
        folder = Path(name).expanduser()
        if (folder / CONFIG_FILE).is_file():
            return cls._of_run(name, folder, trust_remote_code)
        if (folder / ADAPTER_FILE).is_file():
            task = str(PeftConfig.from_pretrained(str(folder)).task_type)
            kind: Kind = "reward model" if task.endswith("SEQ_CLS") else "policy"
            run = next((parent for parent in folder.absolute().parents[:2] if (parent / CONFIG_FILE).is_file()), None)
            if (quantization := _quantization(run)) is not None:
                raise ConfigError(f"{name}: was trained on a {quantization} base; export its run, {run}, instead.")
            return cls(name, str(folder), kind, run, folder, None, revision, trust_remote_code)
        model = check_model(name, revision)
        run = folder.absolute().parent if (folder.absolute().parent / CONFIG_FILE).is_file() else None
        kind = _kind(model, revision, trust_remote_code)
        return cls(name, model, kind, run, _adapter_beside(folder), _quantization(run), revision, trust_remote_code)

    @classmethod
    def _of_run(cls, name: str, run: Path, trust_remote_code: bool) -> "Source":
        folder = run / POLICY_FOLDER
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"{name}: this run has saved no model yet (it has no {POLICY_FOLDER}/). Let it end, or continue it "
                "with --resume."
            )
        kind = _kind(str(folder), None, trust_remote_code)
        return cls(name, str(folder), kind, run, _adapter_beside(folder), _quantization(run), None, trust_remote_code)

    @property
    def is_adapter(self) -> bool:
        """Whether the adapter on its base is all there is: no folder holds the merged model."""
        return self.adapter is not None and self.model == str(self.adapter)

    def stored_dtype(self) -> torch.dtype:
        """The dtype of the saved weights; float32 for an adapter, whose merge is computed in it."""
        if self.is_adapter:
            return torch.float32
        config = AutoConfig.from_pretrained(
            self.model, revision=self.revision, trust_remote_code=self.trust_remote_code
        )
        dtype: torch.dtype | None = config.dtype
        return dtype or torch.float32

    def load(self, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        """The model on the CPU in evaluation mode, adapters merged."""
        if self.is_adapter:
            assert self.adapter is not None
            return load_adapted(self.adapter, self.kind, self.trust_remote_code, dtype)
        return load(self.model, self.kind, self.revision, self.trust_remote_code, dtype)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer: from its own folder, or the base's where an adapter brings none."""
        names = [self.model]
        if self.is_adapter:
            names.append(str(PeftConfig.from_pretrained(self.model).base_model_name_or_path))
        for name in names:
            try:
                return AutoTokenizer.from_pretrained(
                    name, revision=self.revision, trust_remote_code=self.trust_remote_code
                )
            except (OSError, ValueError, KeyError) as error:
                failure = explain_hub_error(name, error)
        raise failure


def load(
    name: str,
    kind: Kind,
    revision: str | None = None,
    trust_remote_code: bool = False,
    dtype: torch.dtype = torch.float32,
    quantization: Quantization | None = None,
) -> PreTrainedModel:
    """A policy or reward model on the CPU in evaluation mode."""
    if kind == "policy":
        section = ModelSection(
            name=name,
            revision=revision,
            trust_remote_code=trust_remote_code,
            quantization=quantization,
            lora=None if quantization is None else LoraSection(),  # a quantised base is one for adapters
        )
        return load_causal_lm(section, dtype).eval()
    return load_scalar_lm(name, dtype, quantization, revision=revision, trust_remote_code=trust_remote_code).eval()


def load_adapted(
    adapter: Path,
    kind: Kind,
    trust_remote_code: bool = False,
    dtype: torch.dtype = torch.float32,
    quantization: Quantization | None = None,
) -> PreTrainedModel:
    """The adapter's base with the adapter: merged into it by peft, or on it where the base is quantised.

    Raises ConfigError where the base that the adapter names cannot be loaded.
    """
    config = PeftConfig.from_pretrained(str(adapter))
    base = check_model(str(config.base_model_name_or_path), config.revision)
    adapted = PeftModel.from_pretrained(
        load(base, kind, config.revision, trust_remote_code, dtype, quantization), str(adapter)
    )
    if quantization is not None:  # merging would round the weights to the quantisation's grid once more
        return adapted.base_model.model.eval()
    return adapted.merge_and_unload().eval()


def _kind(model: str, revision: str | None, trust_remote_code: bool) -> Kind:
    try:
        config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise explain_hub_error(model, error) from error
    scored = any("SequenceClassification" in architecture for architecture in config.architectures or [])
    return "reward model" if scored else "policy"


def _quantization(run: Path | None) -> Quantization | None:
    """How the base of a run was quantised, by its configuration."""
    if run is None:
        return None
    config = yaml.safe_load((run / CONFIG_FILE).read_text(encoding="utf-8"))
    found: Quantization | None = config.get("model", {}).get("quantization")
    return found


def _adapter_beside(folder: Path) -> Path | None:
    """The adapter that the learner saves below a model it was merged into."""
    adapter = folder / "adapter"
    return adapter if (adapter / ADAPTER_FILE).is_file() else None
