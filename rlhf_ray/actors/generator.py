"""The rollout generator: one vLLM engine that samples responses, streams them as they finish, and takes new weights.

Tokens are a function of (seed, iteration, prompt_id, sample_index) and the weights: not of the number of generators,
nor of what else is in the batch. Log-probs are raw ones: temperature 1, before top-k and top-p.

A weight update never mixes with sampling: `begin_update` first lets the running requests finish (they carry the old
version), and until `finish_update` has proved the new weights complete, `generate` is refused. Start the process with
`generator_environment`; call it as a threaded actor, so that `health` answers meanwhile.
"""

import copy
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from rlhf_ray import faults
from rlhf_ray.actors.engine_thread import EngineThread
from rlhf_ray.actors.environment import process_environment
from rlhf_ray.actors.memory import memory_use
from rlhf_ray.actors.sample_table import Sample, continuations, sample_meta, sample_table
from rlhf_ray.config.common import LoraSection
from rlhf_ray.config.ppo import GenerationSection, SyncSection
from rlhf_ray.errors import ConfigError, DataError, InfrastructureError
from rlhf_ray.weights.bucket import Bucket, SentReceipt
from rlhf_ray.weights.receiver import ADAPTER, WEIGHTS, WeightReceiver

#: what `generate(sampling=...)` may override, by the names of the configuration
SAMPLING_KEYS = ("temperature", "top_k", "top_p", "max_new_tokens", "min_new_tokens", "stop")
Output = tuple[int, Any]  # (position in the request list, vLLM's RequestOutput)


def generator_environment(section: GenerationSection, threads: int, verbose: bool = False) -> dict[str, str]:
    """Environment of a generator's process; vLLM reads its part when it is imported.

    The engine runs in the actor's own process (starts in a third of the time, buckets arrive without a copy).
    """
    return process_environment(threads) | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "INFO" if verbose else "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }


def sample_seed(seed: int, iteration: int, prompt_id: int, sample_index: int) -> int:
    """63-bit seed of one sample."""
    key = np.array([seed, iteration, prompt_id, sample_index], np.int64)
    return xxhash.xxh3_64_intdigest(key.tobytes()) >> 1


class Generator:
    """One engine replica. `version` 0 of attempt 0 are the weights that `model_path` holds.

    With `lora` an update brings an adapter of that shape, to be applied to the weights that `model_path` holds. `fault`
    is fault injection, for tests of the sync's proof only: see `weights.engine.Proven`.
    """

    def __init__(
        self,
        model_path: str,
        section: GenerationSection,
        sync: SyncSection,
        dtype: str,
        seed: int,
        trust_remote_code: bool = False,
        revision: str | None = None,
        tokenizer: str | None = None,
        lora: LoraSection | None = None,
        fault: dict[str, str] | None = None,
    ) -> None:
        self._section = section
        self._seed = seed
        self._lora = lora
        self._weights = WeightReceiver(WEIGHTS if lora is None else ADAPTER)
        self._tokenizer: Any = None
        self._context_tokens = 0
        model = {
            "model": model_path,
            "revision": revision,
            "tokenizer": tokenizer or model_path,
            "trust_remote_code": trust_remote_code,
            "dtype": dtype,
            "seed": seed,
        }
        self._engine = EngineThread(lambda: self._build(model, sync.transport, fault or {}))

    # ---- state

    def ready(self, timeout_s: float = 600) -> dict[str, Any]:
        """Wait until the engine is loaded; {"version", "attempt", "context_tokens"}."""
        self._engine.call(lambda engine: None, timeout_s)
        return {**self._held(), "context_tokens": self._context_tokens}

    def health(self) -> dict[str, Any]:
        """{"state", "since_s", "running", "version", "attempt"} and memory use, at once, whatever the engine does."""
        return {**self._engine.status(), **self._held(), **memory_use()}

    def _held(self) -> dict[str, int]:
        return {"version": self._weights.version, "attempt": self._weights.attempt}

    # ---- sampling

    def generate(
        self,
        prompts: pa.Table,
        iteration: int,
        samples_per_prompt: int,
        seed: int | None = None,
        sampling: dict[str, Any] | None = None,
        group_chunks: int | None = None,
        wanted: np.ndarray | None = None,
    ) -> Iterator[pa.Table | dict[str, Any]]:
        """Yield, in turn, a table of `schema.sample_schema` and its `sample_meta`, as samples finish.

        Batches hold `stream_samples` samples in the order in which they finish; with `group_chunks` = k they hold all
        samples of k successive prompts, in order. The last meta also has "last", "tokens" and "tokens_per_s".
        `sampling` overrides some of SAMPLING_KEYS (temperature 0 is greedy), `seed` the run's. The tokens of a stop
        string are in `response_tokens`, its text is not in `response`. `wanted`: int64 [samples, 2], rows of `prompts`
        with sample_index, to sample these only.

        Raises:
            DataError: a prompt leaves no room for a response.
            ActorLost: the engine failed.
            InfrastructureError: it is in the middle of a weight update.
        """
        started = time.perf_counter()
        self.ready()
        arguments = self._sampling_arguments(sampling or {})
        places = np.argwhere(np.ones((prompts.num_rows, samples_per_prompt))) if wanted is None else wanted
        requests = self._requests(prompts, places, iteration, self._seed if seed is None else seed, arguments)
        stream = self._engine.submit(requests, admit=self._weights.require_whole, options=self._request_options)
        version = stream.admitted
        finished = self._engine.drain(stream)
        if group_chunks is None:
            batches = in_batches(finished, self._section.stream_samples)
        else:
            batches = in_order(finished, group_chunks * samples_per_prompt, len(requests))
        done = tokens = 0
        for number, batch in enumerate(batches):
            samples = self._samples(batch, places, decode=not arguments["detokenize"])
            table = sample_table(prompts, samples, version)
            yield table
            seconds = time.perf_counter() - started
            meta = sample_meta(table, samples, version, seconds)
            done, tokens = done + len(samples), tokens + int(meta["response_length"].sum())
            if done == len(requests):
                meta |= {"last": True, "tokens": tokens, "tokens_per_s": tokens / seconds}
            yield meta
            if number == 0:
                faults.reach("generate")

    def _sampling_arguments(self, overrides: dict[str, Any]) -> dict[str, Any]:
        """Arguments of vLLM's SamplingParams that all samples share."""
        if unknown := sorted(set(overrides) - set(SAMPLING_KEYS)):
            raise ConfigError(f"Sampling has no {', '.join(unknown)}: it takes {', '.join(SAMPLING_KEYS)}.")
        values = {key: overrides.get(key, getattr(self._section, key)) for key in SAMPLING_KEYS}
        return {
            "temperature": values["temperature"],
            "top_k": values["top_k"],
            "top_p": values["top_p"],
            "max_tokens": values["max_new_tokens"],
            "min_tokens": values["min_new_tokens"],
            "stop": values["stop"] or None,
            "detokenize": bool(values["stop"]),  # without stop strings text is decoded later, off the engine's thread
            "logprobs": 0,  # the sampled token's own
            "flat_logprobs": True,
            "skip_clone": True,  # each request has its own parameters
        }

    def _request_options(self) -> dict[str, Any]:
        """The adapter that answers, once one was loaded."""
        if self._lora is None or not self._weights.started:
            return {}
        from rlhf_ray.weights.adapter import adapter_request

        return {"lora_request": adapter_request(self._weights.started)}

    def _requests(
        self, prompts: pa.Table, places: np.ndarray, iteration: int, seed: int, arguments: dict[str, Any]
    ) -> list[tuple[Any, Any]]:
        """(prompt, parameters) of each sample of `places`, (row, sample_index)."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        ids, tokens = prompts["prompt_id"].to_pylist(), prompts["prompt_tokens"].to_pylist()
        for prompt_id, prompt in zip(ids, tokens, strict=True):
            self._check_length(prompt_id, len(prompt))
        requests = []
        for row, sample_index in places.tolist():
            params = SamplingParams(
                seed=sample_seed(seed, iteration, ids[row], sample_index),
                output_kind=RequestOutputKind.FINAL_ONLY,
                **arguments,
            )
            requests.append(({"prompt_token_ids": tokens[row]}, params))
        return requests

    def _check_length(self, prompt_id: int, length: int) -> None:
        if not 0 < length < self._context_tokens:
            raise DataError(
                f"Prompt {prompt_id} has {length} tokens, but a context of {self._context_tokens} takes 1 to "
                f"{self._context_tokens - 1}. Set data.too_long to drop or truncate, or raise "
                "generation.max_context_tokens."
            )

    def _samples(self, batch: list[Output], places: np.ndarray, decode: bool) -> list[Sample]:
        completions = [output.outputs[0] for _, output in batch]
        if lost := {completion.finish_reason for completion in completions} - {"stop", "length"}:
            raise InfrastructureError(f"The engine gave up requests ({', '.join(map(str, lost))}).")
        texts = [completion.text for completion in completions]
        if decode:
            prompts = [output.prompt_token_ids for _, output in batch]
            texts = continuations(self._tokenizer, prompts, [completion.token_ids for completion in completions])
        samples = []
        for (position, _), completion, text in zip(batch, completions, texts, strict=True):
            row, index = places[position].tolist()
            logprobs = completion.logprobs.logprobs
            samples.append(Sample(row, index, completion.token_ids, logprobs, text, completion.finish_reason))
        return samples

    # ---- weights

    def begin_update(self, version: int, attempt: int) -> None:
        """Let running requests finish, then get ready for weights (attempt, version), in place of an abandoned update.

        Raises:
            AuditError: the generator holds later weights already.
        """

        def begin(engine: Any) -> None:
            self._engine.finish_running(engine)
            faults.reach("begin_update")
            self._weights.begin(engine, version, attempt)

        self._engine.call(begin)

    def load_bucket(self, item: Bucket | SentReceipt) -> None:
        """Load one bucket, in any order, or note the receipt that ends the learner's stream.

        Raises:
            AuditError: it does not belong to the weights that `begin_update` announced, or came before.
        """
        faults.reach("load_bucket")
        if isinstance(item, SentReceipt):
            self._engine.call(lambda engine: self._weights.note_sent(item))
        else:
            self.load_update({"bucket": item})

    def load_update(self, update_info: dict[str, Any]) -> None:
        """Load what an update info of the transport describes (NCCL, CUDA IPC)."""
        self._engine.call(lambda engine: self._weights.load(engine, update_info))

    def finish_update(self) -> dict[str, Any]:
        """End the update: {"version", "attempt", "digests": {name: digest}, "faults": [what is not right]}.

        Without faults the engine samples from the new weights. With some it refuses to generate until the next update.
        """
        faults.reach("finish_update")
        return self._engine.call(self._weights.finish)

    def init_transfer(self, init_info: dict[str, Any]) -> None:
        """Open the transport (NCCL, CUDA IPC) with what the learner's rank 0 sent."""
        self._engine.call(lambda engine: engine.collective_rpc("init_weight_transfer_engine", args=(init_info,)))

    # ---- the engine

    def _build(self, model: dict[str, Any], transport: str, fault: dict[str, str]) -> Any:
        from rlhf_ray.models.lean import import_lean_transformers

        import_lean_transformers()
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        from rlhf_ray.weights.adapter import refuse_unadaptable
        from rlhf_ray.weights.vllm_plugin import register

        register()
        arguments = EngineArgs(
            **model,
            **engine_options(self._section),
            **(_weight_updates(transport) if self._lora is None else _adapter_updates(self._lora)),
            logprobs_mode="raw_logprobs",
            disable_log_stats=True,
            use_tqdm_on_load=False,
        )
        if self._lora is not None:
            refuse_unadaptable(arguments)
        engine = LLMEngine.from_engine_args(arguments)
        faults.reach("load")
        if self._lora is not None:
            engine.collective_rpc("prepare_adapters", args=(self._lora.r, self._lora.alpha, fault))
        elif transport in ("auto", "object_store"):
            engine.collective_rpc("init_weight_transfer_engine", args=({"fault": fault},))
        self._context_tokens = engine.model_config.max_model_len
        self._tokenizer = copy.deepcopy(engine.get_tokenizer())  # the engine's own is not ours to share between threads
        return engine


def engine_options(section: GenerationSection) -> dict[str, Any]:
    """Engine arguments that follow from the configuration and the platform: memory, parallelism, how much at a time."""
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    if on_cpu:
        memory: dict[str, Any] = {"kv_cache_memory_bytes": int(section.cpu_kv_cache_gib * 2**30)}
    else:
        memory = {"gpu_memory_utilization": section.gpu_memory_utilization}
    return memory | {
        "tensor_parallel_size": section.tensor_parallel_size,
        "max_model_len": section.max_context_tokens,
        "max_num_seqs": section.max_concurrent_samples,
        # A prompt prefilled in parts makes vLLM rewind its sample's random generator, which CPU generators cannot.
        "enable_chunked_prefill": False if on_cpu else None,
        "enforce_eager": on_cpu if section.enforce_eager is None else section.enforce_eager,
    }


def _weight_updates(transport: str) -> dict[str, Any]:
    """Engine arguments for updates of all weights."""
    from vllm.config import WeightTransferConfig

    backend = "object_store" if transport == "auto" else transport
    return {
        "weight_transfer_config": WeightTransferConfig(backend=f"rlhf_ray_{backend}"),
        "worker_extension_cls": "rlhf_ray.weights.engine.ReceiptExtension",
    }


def _adapter_updates(lora: LoraSection) -> dict[str, Any]:
    """Engine arguments for updates of an adapter."""
    from rlhf_ray.weights.adapter import adapter_arguments

    return adapter_arguments(lora) | {"worker_extension_cls": "rlhf_ray.weights.adapter.AdapterExtension"}


def in_batches(finished: Iterator[Output], size: int) -> Iterator[list[Output]]:
    """Outputs as they come, `size` at a time."""
    batch: list[Output] = []
    for output in finished:
        batch.append(output)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def in_order(finished: Iterator[Output], size: int, total: int) -> Iterator[list[Output]]:
    """Outputs 0 to size - 1, then the next `size`, and so on to `total`: a batch when all its outputs are there."""
    held: dict[int, Output] = {}
    start = 0
    for output in finished:
        held[output[0]] = output
        while start < total and all(position in held for position in range(start, min(start + size, total))):
            yield [held.pop(position) for position in range(start, min(start + size, total))]
            start += size
