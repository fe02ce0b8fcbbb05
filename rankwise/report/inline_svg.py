"""A chart's SVG made fit to stand inside a page: named, described, and with ids of its own."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"

_REFERENCE = re.compile(r"url\(\s*['\"]?#([^'\")]+)['\"]?\s*\)")


def inline_svg(svg: str, name: str, title: str, description: str) -> str:
    """The SVG as one image for assistive technology, of flexible width.

    Its ids and the references to them start with ``name``, so that several stand on one page.

    Args:
        svg: a whole SVG document, as our exporter writes it.
        name: unique on the page.
        title: short, what the image is.
        description: what it shows, in words.

    Raises:
        ValueError: it holds a script or refers to something outside itself.
    """
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(svg)  # noqa: S314 (we have just written it)
    for element in root.iter():
        if element.tag in (f"{{{SVG}}}script", f"{{{SVG}}}foreignObject", f"{{{SVG}}}image"):
            raise ValueError(f"a chart must not hold {element.tag}")
        _clean(element, name)
    width = root.attrib.pop("width")
    root.attrib.pop("height", None)
    root.attrib |= {
        "role": "img",
        "aria-labelledby": f"{name}-title {name}-desc",
        "style": f"max-width: {width}px",
    }
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(f"{{{SVG}}}{tag}", {"id": f"{name}-{tag}"})
        element.text = text
        root.insert(place, element)
    return ElementTree.tostring(root, encoding="unicode")


def _clean(element: ElementTree.Element, name: str) -> None:
    """Own ids; no labels of single marks, which would be read out one by one."""
    for key in list(element.attrib):
        value = element.attrib[key]
        if key.startswith("aria-") or key in ("role", "class"):
            del element.attrib[key]
        elif key == "id":
            element.attrib[key] = f"{name}-{value}"
        elif key in ("href", f"{{{XLINK}}}href"):
            if not value.startswith("#"):
                raise ValueError(f"a chart must not refer to {value!r}")
            element.attrib[key] = f"#{name}-{value[1:]}"
        elif "url(" in value:
            element.attrib[key] = _REFERENCE.sub(rf"url(#{name}-\1)", value)
