"""A stand-in for vLLM, which needs a GPU: its inputs, its process, and answers from a table."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

# log-probability of each token behind the token before it, by model; token 9 is what is best
TABLE = {
    None: {(1, 2): -0.5, (2, 3): -1.0, (3, 4): -2.0},
    "r8": {(1, 2): -0.25, (2, 3): -3.0, (3, 4): -4.0},
}
BEST = -0.75


class FakeVllm(ModuleType):
    """Records its inputs. Pairs beside the table are less likely to adapters than to the base."""

    def __init__(self) -> None:
        super().__init__("vllm")
        self.__spec__ = ModuleSpec("vllm", None)
        self.opened: list[dict[str, Any]] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        self.calls: list[tuple[list[Any], list[Any], list[Any]]] = []
        self.on_opening: Callable[[], None] = lambda: None
        self.ends_when_told = True
        self.SamplingParams = lambda **options: options
        fake = self

        class LLM:
            def __init__(self, **options: Any) -> None:
                fake.on_opening()
                fake.opened.append(options)
                process = subprocess.Popen(["sleep", "600"])
                fake.processes.append(process)
                end = process.terminate if fake.ends_when_told else lambda: None
                self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=end))

            def generate(
                self, prompts: Any, sampling_params: Any, lora_request: Any, use_tqdm: bool
            ) -> list[Any]:
                fake.calls.append((prompts, sampling_params, lora_request))
                rows = zip(prompts, sampling_params, lora_request, strict=True)
                return [fake.answer(*row) for row in rows]

        self.LLM = LLM

    @property
    def is_running(self) -> bool:
        return any(process.poll() is None for process in self.processes)

    def end(self) -> None:
        """End what a test has left."""
        for process in self.processes:
            process.kill()
            process.wait()

    @staticmethod
    def answer(prompt: Any, options: Any, request: Any) -> Any:
        tokens, model = prompt["prompt_token_ids"], request and request.name
        if "prompt_logprobs" not in options:
            text = f"{model} continues {tokens}"
            reason = "stop" if len(tokens) < 3 else "length"
            return SimpleNamespace(outputs=[SimpleNamespace(text=text, finish_reason=reason)])
        positions: list[Any] = [None]
        beside = -9.0 - (request.number if request else 0)
        for pair in itertools.pairwise(tokens):
            own = TABLE.get(model, {}).get(pair, beside)
            found = {pair[1]: SimpleNamespace(logprob=own)}
            positions.append(found | ({9: SimpleNamespace(logprob=BEST)} if own < BEST else {}))
        return SimpleNamespace(prompt_logprobs=positions)


def lora_requests() -> ModuleType:
    """In place of ``vllm.lora.request``."""
    module = ModuleType("vllm.lora.request")
    module.LoRARequest = lambda name, number, path: SimpleNamespace(  # pyright: ignore
        name=name, number=number, path=path
    )
    return module
