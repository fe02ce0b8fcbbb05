"""A judge model as a check: is an answer better than the base's? It is asked in both orders.

    judged_by: {code: judge_model.py:score}     # of a study with allow_task_code: true

The judge is behind any address that speaks OpenAI's chat protocol. Change QUESTION and MODEL here:
this file is part of what scores depend on, the environment is not. JUDGE_URL is the address, and
JUDGE_KEY the key, if it needs one.
"""

import json
import os
import time
import urllib.error
import urllib.request

URL = os.environ.get("JUDGE_URL", "http://127.0.0.1:8000/v1")
MODEL = "judge"
QUESTION = """Which answer is more helpful, correct and to the point?

Question:
{question}

Answer A:
{first}

Answer B:
{second}

Say A, B or TIE, and nothing else."""
TRIES = 3


def score(row, answer, base_answer):
    """1 where the answer wins in both orders, 0 where the base's does, 0.5 for a tie.

    None where the judge says neither A, B nor TIE: the item is left out, for all models.
    """
    question = row.get("prompt") or row["messages"][-2]["content"]
    as_first = verdict(question, answer, base_answer)
    as_second = verdict(question, base_answer, answer)
    if as_first is None or as_second is None:
        return None
    return (as_first + 1 - as_second) / 2


def verdict(question, first, second):
    """How good the first answer is beside the second: 1, 0, or 0.5; None is a refusal."""
    said = asked(QUESTION.format(question=question, first=first, second=second))
    return {"A": 1.0, "B": 0.0, "TIE": 0.5}.get(said.strip().strip(".").upper())


def asked(content):
    """What the judge says; a server that is busy is asked again."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": 5,
    }
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("JUDGE_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(f"{URL}/chat/completions", json.dumps(body).encode(), headers)
    tries = 0
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return json.load(reply)["choices"][0]["message"]["content"] or ""
        except urllib.error.HTTPError as error:
            tries += 1
            if error.code not in (429, 500, 502, 503) or tries == TRIES:
                raise
            time.sleep(2**tries)
