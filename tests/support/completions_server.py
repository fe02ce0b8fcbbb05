"""A server of OpenAI's completions on loopback, by transformers, with defects that can be planted.

It shares no code with the package: one sequence at a time, in whole forward passes.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch


@dataclass
class Served:
    """What a server does; it may be changed while it runs.

    Attributes:
        models: by the names that it lists.
        tokenizer: its own.
        answers_with: name of the model that answers in the place of all others.
        has_logprobs: whether it gives log-likelihoods of a prompt.
        seconds: that it waits before it answers.
        most_answers: completions before it fails with status 500; None: it never does.
        shift: nats that are added to every log-likelihood of an even token.
        num_asked: completions that were asked for.
        spoilt: what becomes of a completion before it is sent.
    """

    models: Mapping[str, Any]
    tokenizer: Any
    answers_with: str | None = None
    has_logprobs: bool = True
    seconds: float = 0.0
    most_answers: int | None = None
    shift: float = 0.0
    num_asked: int = 0
    spoilt: Callable[[dict[str, Any]], Any] = lambda answer: answer
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @torch.inference_mode()
    def completion(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        (prompt,) = asked["prompt"]
        tokens = self.tokenizer(prompt).input_ids if isinstance(prompt, str) else list(prompt)
        model, num_prompt = self.models[self.answers_with or asked["model"]], len(tokens)
        text, reason = "", "length"
        cache, new = None, tokens
        for _ in range(asked["max_tokens"]):
            read = model(torch.tensor([new]), past_key_values=cache, use_cache=True)
            token = int(read.logits[0, -1].argmax())
            cache, new = read.past_key_values, [token]
            tokens = [*tokens, token]
            if token == self.tokenizer.eos_token_id:
                reason = "stop"
            text = self.tokenizer.decode(tokens[num_prompt:], skip_special_tokens=True)
            if found := [text.index(stop) for stop in asked.get("stop") or () if stop in text]:
                text, reason = text[: min(found)], "stop"
            if reason == "stop":
                break
        choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": reason}
        if asked.get("echo"):
            choice["text"] = self.tokenizer.decode(tokens)
            rows = model(torch.tensor([tokens])).logits[0, :-1].log_softmax(-1)
            own = [float(row[token]) for row, token in zip(rows, tokens[1:], strict=True)]
            own = [n + self.shift * (t % 2 == 0) for n, t in zip(own, tokens[1:], strict=True)]
            tops: list[Any] = [
                {str(int(row.argmax())): float(row.max()), str(token): nats}
                for row, token, nats in zip(rows, tokens[1:], own, strict=True)
            ]
            choice["logprobs"] = {"token_logprobs": [None, *own], "top_logprobs": [None, *tops]}
            if not self.has_logprobs:
                choice["logprobs"] = None
        return {
            "model": asked["model"],
            "choices": [choice],
            "usage": {"prompt_tokens": num_prompt},
        }


@contextlib.contextmanager
def serving(served: Served) -> Generator[Served]:
    """Within the block it answers at ``served.url``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            names = [{"id": name, "object": "model"} for name in served.models]
            self.answer(200, {"object": "list", "data": names})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            time.sleep(served.seconds)
            with served.lock:
                served.num_asked += 1
                if served.most_answers is not None and served.num_asked > served.most_answers:
                    self.answer(500, {"error": "out of memory"})
                else:
                    self.answer(200, served.spoilt(served.completion(asked)))

        def answer(self, status: int, content: Any) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # who asked may have gone
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        served.url = f"http://127.0.0.1:{server.server_port}/v1"
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()
