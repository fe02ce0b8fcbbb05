"""A model behind an OpenAI-compatible server, asked by lm-eval's own client."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from rankwise.errors import ConfigError, ModelError, TaskError, to_install
from rankwise.records import quantities
from rankwise.records.files import cache_folder, writing
from rankwise.records.forms import completions_root
from rankwise.tasks.questions import (
    Advance,
    Continuation,
    Generation,
    GenerationSettings,
    LogLikelihood,
    Prompt,
)

TIMEOUT_SECONDS = 300
# A request is sent so often if the server is overloaded or drops the connection.
_ATTEMPTS = 3
PAUSE_SECONDS = 1
_BUSY = (429, *range(500, 600))
_AT_ONCE = 8
_FEW_PROBES, _PROBE_TOKENS = 4, 16
# By how much a probe's log-likelihood may differ between two calls of one model, as a server puts
# other requests into its batches and rounds otherwise. Where it differs more, all is asked again.
_SAME_NATS = 0.05
_PROBED = "probed"  # the line of the kept answers with the probes' nats; the others' are hashes
_PART_OF_A_CHARACTER = "\ufffd"

Asked = TypeVar("Asked", Continuation, Prompt)
Answer = TypeVar("Answer", LogLikelihood, Generation)


class ServedModel:
    """A server as a ``tasks.questions.Scorer`` of one model, the one that it serves.

    It is sent the token ids that are scored here. Its answers are kept below ``cache_folder()``
    until ``finish``, so that a check that was stopped asks no question twice.

    Attributes:
        form: the server's URL, with the model's name behind ``#``.
        model: that name, or that of the only model that is served.
    """

    attached: Set[str] = frozenset()

    def __init__(self, form: str, tokenizer: Any, run: str = "") -> None:
        """Look for the server and its model.

        Args:
            form: such as ``http://localhost:8000/v1#my-adapter``.
            tokenizer: of the base.
            run: the model's name, where ``form`` names none; empty: the only one that is served.

        Raises:
            ConfigError: it is no URL of completions.
            ModelError: nothing answers there, it does not serve this model or one model alone, or
                lm-eval's client cannot be imported.
        """
        try:
            self._root = completions_root(form)
        except ValueError as error:
            raise ConfigError("check", [f"--forms: {error}"]) from error
        self.form, self._tokenizer = form, tokenizer
        self._file: Path | None = None
        try:
            from lm_eval.models.openai_completions import LocalCompletionsAPI

            client: Any = LocalCompletionsAPI
            self._client = client(
                base_url=f"{self._root}/completions",
                tokenizer_backend="none",  # ours wrote the tokens
                eos_string=tokenizer.eos_token,
                timeout=TIMEOUT_SECONDS,
                max_length=1 << 30,  # what is too long, the server refuses
            )
        except ModuleNotFoundError as error:
            raise ModelError(
                f"{form} is asked by lm-eval's client, whose packages are not installed ({error}). "
                f"Install them: {to_install('train')}."
            ) from error
        self._client.tokenized_requests = True
        logging.getLogger("lm_eval.models.api_models").setLevel(logging.CRITICAL)
        self.model = self._client.model = self._find_model(unquote(urlsplit(form).fragment) or run)

    def take_off(self, name: str) -> None:
        raise NotImplementedError

    def probe(self, items: Sequence[Continuation], *, needs_likelihoods: bool) -> None:
        """Try it with a few texts, and find what it has answered already.

        Raises:
            ModelError: it has another tokenizer, or gives no log-likelihoods and some are needed.
        """
        texts = [self._tokenizer.decode(each.tokens_read) for each in items[:_FEW_PROBES]]
        prompt = "".join(texts)
        # the client sends a list as it is
        output = self._call([prompt], generate=True, gen_kwargs={"max_gen_toks": 1})
        counts = {
            len(self._tokenizer(prompt, add_special_tokens=special).input_ids)
            for special in (False, True)
        }
        with self._understood():
            num_tokens = (output.get("usage") or {}).get("prompt_tokens")
        if num_tokens is not None and num_tokens not in counts:
            raise self._other_tokenizer(f"counts {num_tokens} tokens in a text of {min(counts)}")
        found = [self._log_likelihood(each) for each in items[:_FEW_PROBES] if needs_likelihoods]
        settings = GenerationSettings(_PROBE_TOKENS)
        written = [
            self._generation(Prompt(each.tokens_read, settings)) for each in items[:_FEW_PROBES]
        ]
        key = json.dumps([self.form, self.model, written])  # another adapter would write otherwise
        name = f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.jsonl"
        self._file = cache_folder() / "served" / name
        self._forget_others([answer.nats for answer in found])

    def _forget_others(self, probed: Sequence[float]) -> None:
        """Keep the probes' nats; what was answered beside others is of another model, and goes."""
        assert self._file is not None
        if not probed:
            return
        kept = _read(self._file).get(_PROBED)
        if kept is not None:
            near = (abs(a - b) <= _SAME_NATS for a, b in zip(kept, probed, strict=False))
            if len(kept) == len(probed) and all(near):
                return
            self._file.unlink()
        self._keep(_PROBED, probed)

    def _keep(self, key: str, answer: Sequence[Any]) -> None:
        """Add a line to the answers that are kept."""
        assert self._file is not None
        with writing(self._file):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps([key, list(answer)]) + "\n")

    def log_likelihoods(
        self,
        models: Sequence[str | None],
        items: Sequence[Continuation],
        advance: Advance = lambda _: None,
    ) -> list[list[LogLikelihood]]:
        """Score continuations; ``models`` is [None]."""

        def told(answers: int, item: Continuation) -> None:
            advance(answers * len(item.tokens_read))

        return [self._answers(items, self._log_likelihood, LogLikelihood, told)]

    def generate(
        self,
        models: Sequence[str | None],
        prompts: Sequence[Prompt],
        advance: Advance = lambda _: None,
    ) -> list[list[Generation]]:
        """Continue prompts; ``models`` is [None].

        Raises:
            TaskError: texts are to be sampled, or by options that a server is not sent.
        """
        if any(dict(each.settings.options).get("do_sample") for each in prompts):
            raise TaskError(
                "a task samples its texts, and no server draws as another does. Choose tasks with "
                "greedy texts."
            )
        unsent = {name for each in prompts for name in each.settings.changes_of_greedy}
        if unsent:
            raise TaskError(
                f"a task's generation_kwargs have {quantities.listed(sorted(unsent))}, and a "
                "server is not asked for that. Choose tasks with plain greedy texts."
            )

        def told(answers: int, prompt: Prompt) -> None:
            advance(answers * (len(prompt.tokens) + prompt.settings.max_new_tokens))

        return [self._answers(prompts, self._generation, Generation, told)]

    def finish(self) -> None:
        """Forget the answers that were kept, as all of them have been given."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def _answers(
        self,
        items: Sequence[Asked],
        ask: Callable[[Asked], Answer],
        kind: Callable[..., Answer],
        told: Callable[[int, Asked], None],
    ) -> list[Answer]:
        """Those that are kept and new ones, in the order of the items."""
        assert self._file is not None
        keys = [hashlib.blake2b(repr(item).encode(), digest_size=16).hexdigest() for item in items]
        kept = _read(self._file)
        new = {key: item for key, item in zip(keys, items, strict=True) if key not in kept}
        for key, item in zip(keys, items, strict=True):
            if key not in new or item is not new[key]:
                told(1, item)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for (key, item), answer in zip(new.items(), pool.map(ask, new.values()), strict=True):
                kept[key] = list(answer)
                self._keep(key, answer)
                told(1, item)
        return [kind(*kept[key]) for key in keys]

    def _log_likelihood(self, item: Continuation) -> LogLikelihood:
        wanted = (None, list(item.context), list(item.continuation))
        tokens, lengths, _ = self._client.batch_loglikelihood_requests([[wanted]])
        output = self._call(tokens, generate=False)
        try:
            (choice,) = output["choices"]
            (answer,) = self._client.parse_logprobs(output, tokens, lengths)
            # lm-eval's client takes the last to be that of a token which was written besides
            if len(choice["logprobs"]["token_logprobs"]) != len(tokens[0]) + 1:
                raise ValueError("a number of tokens that was not sent")
            if not math.isfinite(answer[0]):
                raise ValueError("a log-likelihood that is no number")
            read = str(choice["text"]).strip()
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise ModelError(
                f"{self.form} gives no log-likelihoods of a prompt's tokens (`echo` with "
                "`logprobs`), which tasks with options and held-out texts need. Serve the model by "
                "vLLM, or choose tasks that write texts."
            ) from error
        sent = [
            self._tokenizer.decode(tokens[0], skip_special_tokens=skips).strip()
            for skips in (False, True)
        ]
        # a prompt may end within a character, which the token that is written besides completes
        if not read.startswith(tuple(text.rstrip(_PART_OF_A_CHARACTER) for text in sent)):
            raise self._other_tokenizer(f"reads {read!r:.60} for {sent[0]!r:.60}")
        return LogLikelihood(*answer)

    def _generation(self, prompt: Prompt) -> Generation:
        settings = {
            "max_gen_toks": prompt.settings.max_new_tokens,
            "until": list(prompt.settings.stops),
        }
        output = self._call([list(prompt.tokens)], generate=True, gen_kwargs=settings)
        with self._understood():
            (text,) = self._client.parse_generations(output)
            if not isinstance(text, str | None):
                raise TypeError(f"a text that is {text!r:.40}")
            return Generation(text or "", output["choices"][0].get("finish_reason") != "length")

    def _call(self, messages: list[Any], **options: Any) -> Mapping[str, Any]:
        """One request by lm-eval's client; one that the server drops is sent again."""
        import requests

        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with self._understood():
                    output = self._client.model_call(messages, **options)
                    if not isinstance(output, Mapping):
                        raise TypeError(f"an answer that is {output!r:.40}")
                    return output
            except ModelError as error:
                cause, response = error.__cause__, getattr(error.__cause__, "response", None)
                again = isinstance(cause, requests.RequestException) and not (
                    isinstance(cause, requests.Timeout | ValueError)
                    or (response is not None and response.status_code not in _BUSY)
                )
                if not again or attempt == _ATTEMPTS:
                    raise
            time.sleep(attempt * PAUSE_SECONDS)
        raise AssertionError

    @property
    def _kept(self) -> str:
        return "" if self._file is None else " Answers so far are kept: run the same command again."

    @contextlib.contextmanager
    def _understood(self) -> Generator[None]:
        """What goes wrong in a request, in a sentence."""
        import requests

        try:
            yield
        except requests.Timeout as error:
            raise ModelError(
                f"{self.form} gave no answer in {TIMEOUT_SECONDS} s. Serve it with more memory or "
                f"cards, or score fewer items (--limit).{self._kept}"
            ) from error
        except requests.HTTPError as error:
            response: Any = error.response
            said = " ".join(response.text.split())
            raise ModelError(
                f"{self.form} refuses a request (status {response.status_code}): "
                f"{said or 'no reason given':.300}.{self._kept}"
            ) from error
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise ModelError(
                f"{self.form} does not answer as OpenAI's completions do ({error!r:.100}). Check "
                "the address."
            ) from error
        except requests.RequestException as error:
            raise ModelError(
                f"no server answers at {self._root}. Start it, and check address and port."
                f"{self._kept}"
            ) from error

    def _find_model(self, wanted: str) -> str:
        """The model of this name, or the only one; a server may have no list of them."""
        import requests

        with self._understood():
            found = requests.get(
                f"{self._root}/models", headers=self._client.header, timeout=TIMEOUT_SECONDS
            )
            if found.status_code == 404 and wanted:
                return wanted
            found.raise_for_status()
            names = [str(each["id"]) for each in found.json()["data"]]
        if wanted in names or (not wanted and len(names) == 1):
            return wanted or names[0]
        there = f"it serves {quantities.listed(names) if names else 'none'}"
        if wanted:
            raise ModelError(f"{self.form} serves no model {wanted!r}; {there}.")
        raise ModelError(f"{self.form} does not say which model: {there}. Write it behind a #.")

    def _other_tokenizer(self, found: str) -> ModelError:
        return ModelError(
            f"{self.form} has another tokenizer than the base: it {found}. Serve the base that the "
            "adapter was trained on, with its own tokenizer files."
        )


def _read(path: Path) -> dict[str, list[Any]]:
    """Answers by question; a line that was being written when the process ended is asked again."""
    kept: dict[str, list[Any]] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                key, answer = json.loads(line)
                kept[key] = answer
    return kept
