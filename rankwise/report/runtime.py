"""The script that draws charts in pages: Vega, Vega-Lite and Vega-Embed, by way of vl-convert."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from importlib.metadata import version

from rankwise.errors import StorageError
from rankwise.records.files import cache_folder, read_regular, write_atomically

_REVISION = 1
"""Of what is made of vl-convert's bundle."""


def chart_runtime() -> str:
    """The script, which defines ``vegaEmbed``.

    To bundle it takes more than a second, so it is kept in the user's cache; where that cannot be
    written or read, it is made each time.
    """
    made_by = version("vl-convert-python")
    path = cache_folder() / f"vega-{made_by}-{_REVISION}.js.gz"
    with contextlib.suppress(OSError, EOFError, zlib.error):  # gzip knows its checksum
        return gzip.decompress(read_regular(path)).decode()
    script = _bundled(made_by)
    with contextlib.suppress(OSError, StorageError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, gzip.compress(script.encode()))
    return script


def _bundled(made_by: str) -> str:
    """A function that is called at once, for the names in it are not for the page."""
    import vl_convert

    notice = (
        f"/* Vega {vl_convert.get_vega_version()}, Vega-Lite "
        f"{vl_convert.get_vegalite_versions()[-1]}, Vega-Embed "
        f"{vl_convert.get_vega_embed_version()}: copyright University of Washington Interactive "
        "Data Lab, BSD-3-Clause; with D3: copyright Mike Bostock, ISC, and others; "
        f"bundled by vl-convert {made_by} */\n"
    )
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return f"{notice}(() => {{{bundle}}})();\n"
