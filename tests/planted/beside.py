"""A form with the adapter beside a base in bfloat16, under a name that needs bitsandbytes."""

from __future__ import annotations

import pytest

from rankwise.weights import forms

BESIDE = "beside-4bit"


def stored_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> str:
    """``BESIDE``, whose base is stored in bfloat16 instead, without bitsandbytes."""
    (rounded,) = forms.find_forms(["merged-bf16"])
    own = rounded._replace(name=BESIDE, is_beside=True)
    monkeypatch.setitem(forms._TABLE, BESIDE, own)  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(forms, "require_bitsandbytes", lambda _: None)
    return BESIDE
