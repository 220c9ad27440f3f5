# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Write HTML that cannot be broken into: text is escaped unless it was made here. Sizes as people read them."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Union

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
UNKNOWN = "?"
_EMPTY = frozenset(("meta", "input", "wbr"))
# Each ends a line of the file, so that a diff of two pages can be read. No space shows between these on the page.
_LINES = frozenset(("article", "div", "figure", "h2", "h3", "h4", "li", "main", "meta", "nav", "p", "section", "tr"))


class Markup(str):
    """HTML that :func:`tag` made (or that is constant). Any other text is escaped when it becomes a child."""

    __slots__ = ()


Child = Union[str, Markup, None]
Attribute = Union[str, int, float, bool, None]


def tag(element: str, /, *children: Child, **attributes: Attribute) -> Markup:
    """Return an element.

    ``children``: text, which is escaped, :class:`Markup`, or None for nothing. ``attributes``: ``class_`` stands for
    class and ``data_bytes`` for data-bytes; True is an attribute without a value, None and False are no attribute.
    """
    words = [element]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        words.append(key if value is True else '%s="%s"' % (key, html.escape(_number(value))))
    opening = "<%s>" % " ".join(words)
    ending = "\n" if element in _LINES else ""
    return Markup((opening if element in _EMPTY else "%s%s</%s>" % (opening, join(children), element)) + ending)


def join(children: Iterable[Child], between: str = "") -> Markup:
    """Return children one after the other; ``between`` is text, too."""
    parts = [child if isinstance(child, Markup) else html.escape(child) for child in children if child is not None]
    return Markup(html.escape(between).join(parts))


def breakable(text: str) -> Markup:
    """Return a name (of a file, an address) that a line may break behind its punctuation; copied, it is whole."""
    words = re.split(r"(?<=[-._:/])(?=\w)", text)
    return join([part for word in words for part in (tag("wbr"), word)][1:])


def _number(value: Attribute) -> str:
    """Return a value as text, short: five digits are a hundredth of a pixel on a wide screen."""
    return ("%.5f" % value).rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def gib(size: int | None) -> str:
    """Return bytes as GiB with a decimal, for reading."""
    return UNKNOWN if size is None else "%s GiB" % format(size / GIB, ",.1f")


def mib(size: int | None) -> str:
    """Return bytes that something takes as MiB, rounded up, without the unit."""
    return UNKNOWN if size is None else format(-(-size // MIB), ",")


def mib_free(size: int | None) -> str:
    """Return bytes that are left as MiB, rounded down, so that nobody is promised more than there is."""
    return UNKNOWN if size is None else format(size // MIB, ",")


def count(number: int, one: str, many: str = "") -> str:
    """Return ``3 nodes``, ``1 node``."""
    return "%s %s" % (format(number, ","), one if number == 1 else many or one + "s")
