"""Facts -> HTML: elements, tables and lines of traffic.

Knows nothing of what the facts mean.  `h` is the only place where markup is made: whatever is not an Html
already is escaped there, be it a label, an address or what an agent calls itself.
"""

from collections.abc import Iterable, Sequence
from html import escape

VOID = {"br", "input", "link", "meta"}


class Html(str):
    """Text that is markup already."""


Child = str | int | float | None | Iterable["Child"]


def h(tag: str, *children: Child, **attributes: str | int | bool | None) -> Html:
    """An element.  `data_live` is the attribute data-live; True is a bare one, False and None are none."""
    start = [tag]
    for name, value in attributes.items():
        if value is True or (value is not None and value is not False):
            name = name.rstrip("_").replace("_", "-")
            start.append(name if value is True else f'{name}="{escape(str(value))}"')
    if tag in VOID:
        return Html(f"<{' '.join(start)}>")
    return Html(f"<{' '.join(start)}>{join(children)}</{tag}>")


def join(children: Iterable[Child]) -> Html:
    return Html("".join(map(_text, children)))


def _text(child: Child) -> str:
    if child is None or isinstance(child, Html):
        return child or ""
    if isinstance(child, str | int | float):
        return escape(str(child))
    return join(child)


def table(caption: str, heads: Sequence[str], rows: Iterable[tuple[str, Sequence[Child]]]) -> Html:
    """Each row is a key, so that a newer table can be laid over an older one, and its cells.

    A narrow screen shows a row as a block; roles say again what `display` takes away.
    """
    body = [
        h(
            "tr",
            (
                h(
                    "th" if n == 0 else "td",
                    h("div", cell),
                    role="rowheader" if n == 0 else "cell",
                    data_head=head,
                )
                for n, (head, cell) in enumerate(zip(heads, cells, strict=True))
            ),
            role="row",
            data_key=key,
        )
        for key, cells in rows
    ]
    head = h("tr", (h("th", head, role="columnheader", scope="col") for head in heads), role="row")
    return h(
        "table",
        h("caption", caption, class_="unseen"),
        h("thead", head, role="rowgroup"),
        h("tbody", body, role="rowgroup"),
        role="table",
    )


def facts(*pairs: tuple[str, Child]) -> Html:
    """A list of what is what; a fact that is None is left out."""
    return h("dl", (h("div", h("dt", a), h("dd", b)) for a, b in pairs if b is not None))


def sparkline(rates: Sequence[float], words: str, width: int = 120, height: int = 28) -> Html:
    """RATES, oldest first, as a line; WORDS say the same to who can't see it."""
    top = max((*rates, 1.0))
    step = width / max(len(rates) - 1, 1)
    at = [(i * step, height - 1 - rate / top * (height - 3)) for i, rate in enumerate(rates)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    area = f"0,{height} {line} {width},{height}"
    return h(
        "svg",
        h("polygon", points=area, class_="area") if at else None,
        h("polyline", points=line, class_="line", fill="none") if at else None,
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        preserveAspectRatio="none",
        role="img",
        aria_label=words,
    )
