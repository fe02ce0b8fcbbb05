"""The script that draws charts in pages, made again: ``python -m tests.support.vega_runtime``."""

from __future__ import annotations

import gzip
from importlib.metadata import version
from pathlib import Path

import vl_convert

import rankwise.report

FILE = Path(rankwise.report.__file__).parent / "templates" / "vega.js.gz"


def notice() -> str:
    """Whose the script is, and what is in it; the same as long as it need not be made again."""
    return (
        f"/* Vega {vl_convert.get_vega_version()}, "
        f"Vega-Lite {vl_convert.get_vegalite_versions()[-1]}, "
        f"Vega-Embed {vl_convert.get_vega_embed_version()} (University of Washington Interactive "
        "Data Lab, BSD-3-Clause) with D3 (Mike Bostock, ISC), "
        f"as bundled by vl-convert {version('vl-convert-python')} */\n"
    )


def made() -> str:
    """The script; a function, for its names are not for the page."""
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return f"{notice()}(() => {{{bundle}}})();\n"


if __name__ == "__main__":
    FILE.write_bytes(gzip.compress(made().encode(), mtime=0))
