"""How Sphinx makes the site: `make docs`. Pages are Markdown, and read well on their own too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from docutils import nodes
from latex2mathml.converter import convert

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.writers.html5 import HTML5Translator

project = "rankwise"
author = "the rankwise authors"
html_title = "rankwise"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
toc_object_entries_show_parents = "hide"  # run() instead of Study.run() in a page's contents

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
highlight_language = "text"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4  # as GitHub names them

# Every reference must lead somewhere. Types of other packages, in signatures, lead nowhere offline.
nitpicky = True
nitpick_ignore_regex = [("py:class", r"(?!rankwise\.api).*")]
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
add_module_names = False


def formula(translator: HTML5Translator, node: nodes.math) -> None:
    """A formula as MathML, which browsers draw: the site needs no script and no network for it."""
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def display_formula(translator: HTML5Translator, node: nodes.math_block) -> None:
    """The same on lines of its own, which can be wider than a phone."""
    markup = convert(node.astext(), display="block")
    translator.body.append(f'<div class="formula" tabindex="0">{markup}</div>\n')
    raise nodes.SkipNode


SIGNATURES = """

## Signatures

```{eval-rst}
.. autofunction:: rankwise.api.new
.. autofunction:: rankwise.api.open
.. autofunction:: rankwise.api.verdict
.. autoclass:: rankwise.api.Study
   :members:
.. autofunction:: rankwise.api.audit
.. autofunction:: rankwise.records.study_file.load_config
.. autoclass:: rankwise.integrations.retention_callback.RetentionCallback
   :no-inherited-members:
.. automethod:: rankwise.integrations.retention_callback.RetentionCallback.__init__
.. automodule:: rankwise.errors
   :members:
   :exclude-members: closest, did_you_mean
   :show-inheritance:
```
"""


def add_signatures(_: Sphinx, page: str, source: list[str]) -> None:
    """Append docstrings to the Python page, on the site only: GitHub would show directives."""
    if page == "api":
        source[0] += SIGNATURES


def setup(app: Sphinx) -> None:
    """Register the renderer of formulas and the docstrings; called by Sphinx."""
    app.connect("source-read", add_signatures)
    app.add_html_math_renderer("mathml", (formula, None), (display_formula, None))
    app.config.html_math_renderer = "mathml"
