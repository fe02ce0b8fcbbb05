"""The names of the forms in which an adapter is deployed."""

from __future__ import annotations

import hashlib
import re
from urllib.parse import urlsplit

from rankwise.errors import did_you_mean

FLOAT_FORMS = ("merged-bf16", "merged-fp16", "merged-fp32")
BITSANDBYTES_FORMS = ("merged-8bit", "merged-4bit", "beside-8bit", "beside-4bit")
GGUF_FORMS = ("gguf:q8_0", "gguf:q5_1", "gguf:q5_0", "gguf:q4_1", "gguf:q4_0")
"""Those that the gguf package writes, with llama.cpp's numbers."""

LLAMA_CPP_FORMS = (
    *("gguf:q6_k", "gguf:q5_k_m", "gguf:q5_k_s", "gguf:q4_k_m", "gguf:q4_k_s"),
    *("gguf:q3_k_m", "gguf:q2_k"),
)
"""Those that only llama.cpp's own quantiser makes."""

FORMS = (*FLOAT_FORMS, *BITSANDBYTES_FORMS, *GGUF_FORMS, *LLAMA_CPP_FORMS)
"""Names of the forms in which an adapter can be deployed: ``beside`` the rounded base, else merged
into the base before that is rounded."""

AS_TRAINED = "as-trained"
"""A study's run with the adapter beside the base, in float32: what its forms are compared with."""


def is_served(form: str) -> bool:
    """Whether a form is a server: its URL, with the model's name behind ``#``."""
    return form.lower().startswith(("http:", "https:"))


def completions_root(form: str) -> str:
    """Where a server has its models and completions: http://localhost:8000/v1.

    Raises:
        ValueError: it is no URL of completions, or has a password in it.
    """
    url, why = urlsplit(form), ""
    path = (url.path.rstrip("/") or "/v1").removesuffix("/completions")
    if url.username or url.password:
        where = f"{url.scheme}://{url.hostname}"
        raise ValueError(f"{where}: a URL is recorded; put its password into OPENAI_API_KEY")
    try:
        url.port  # noqa: B018  (which is read only here)
    except ValueError:
        why = "has a port that is no number up to 65535"
    if not url.hostname:
        why = "is no URL"
    elif url.query:
        why = "has a query, which is not sent"
    elif path.endswith("/chat"):
        why = "is of chats: the server would write its own prompts"
    if why:
        raise ValueError(f"{form!r} {why}; write http://HOST:PORT/v1#MODEL, of completions")
    return f"{url.scheme}://{url.netloc}{path}"


def known_form(name: str) -> str:
    """Refuse a name that is not a form's."""
    if is_served(name):
        completions_root(name)
        return name
    if name in ("8bit", "4bit"):
        raise ValueError(
            f"{name!r} does not say where the adapter is; write 'merged-{name}' (merged, then "
            f"quantised) or 'beside-{name}' (unmerged beside the quantised base, as QLoRA trains)"
        )
    if name not in FORMS:
        instead = did_you_mean(name, FORMS) or f"there is {', '.join(FORMS)}"
        raise ValueError(f"no form is named {name!r}; {instead}")
    return name


def model_in_form(run: str, form: str) -> str:
    """The name under which a run is scored in a form: that of its folder below ``runs``."""
    name = re.sub(r"[^a-zA-Z0-9_.]+", "-", form)
    if is_served(form):  # whose names may be long, and differ in what no folder's name has
        name = f"{name[:80]}-{hashlib.sha256(form.encode()).hexdigest()[:8]}"
    return f"{run}/forms/{name}"
