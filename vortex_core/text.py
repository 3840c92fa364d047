"""Foreign text made fit to show: bounded, on one line, every character visible.

Names, messages, docstrings, knobs and answers come from programs, files and servers that nobody vouches for. What
they hold may steer a terminal, reverse the order of letters, or forge a second line. Everything of theirs passes
through `visible` (or `visible_lines`) once, where it enters; where it leaves, it is escaped for the place it goes
to: `markup` for rich, `markdown` for a card, `cell` for CSV, `shell` for a
command line; the template engine escapes HTML, and
`agents.prompting` marks data in prompts.

Nothing heavy is imported: the jailed tracer uses this module.
"""

from __future__ import annotations

MAX_LINE = 300  # characters of one foreign fact
MAX_MESSAGE = 2_000  # characters of a whole message, facts and our own words
MAX_DOC = 4_000  # characters of a docstring
MAX_SOURCE = 100_000  # characters of a source that is shown


def visible(value: object, limit: int = MAX_LINE) -> str:
    """One line of at most `limit` characters, all of them visible.

    Control characters (escape sequences, bells), format characters (bidirectional overrides, zero width), surrogates
    and unassigned code points are written as escapes (`\\x1b`, `\\u202e`); white space of any kind is one space.

    Args:
        value: text, or anything else, which is shown by its `str`.
        limit: characters kept; a cut is marked by three dots.
    """
    if type(value) is str and len(value) <= limit and value.isprintable():
        return value  # nearly always
    text = _plain(value, limit)
    return _cut("".join(" " if c.isspace() else _shown(c) for c in text), limit)


def visible_lines(value: object, limit: int = MAX_DOC) -> str:
    """As `visible`, but lines stay lines: for docstrings and other paragraphs, trailing space removed."""
    text = _plain(value, limit).replace("\r\n", "\n").replace("\r", "\n")
    lines = ("".join(" " if c.isspace() else _shown(c) for c in line).rstrip() for line in text.split("\n"))
    return _cut("\n".join(lines), limit)


def is_visible(text: str, limit: int = MAX_LINE) -> bool:
    """Whether `visible` would leave it as it is."""
    return len(text) <= limit and all(c == " " or c.isprintable() for c in text)


def markup(value: object, limit: int = MAX_LINE) -> str:
    """For rich's console markup: visible, tags escaped."""
    from rich.markup import escape

    return escape(visible(value, limit))


def shell(value: object) -> str:
    """One word of a POSIX shell's command line that reads back as `value`, visible."""
    import shlex

    return shlex.quote(visible(value, MAX_MESSAGE))


def markdown(value: object, limit: int = MAX_LINE) -> str:
    """For a line of Markdown, which may become HTML: visible, no tags, no links, no cell of a table broken off."""
    text = visible(value, limit).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("|", "\\|").replace("`", "'").replace("](", "]\\(").replace("][", "]\\[")


def cell(value: object, limit: int = MAX_LINE) -> str:
    """For a cell of a CSV file: visible, and text to a spreadsheet too.

    What begins with `=`, `+`, `-` or `@` would be a formula there.
    """
    text = visible(value, limit)
    return f"'{text}" if text.lstrip()[:1] in ("=", "+", "-", "@") else text


def _plain(value: object, limit: int) -> str:
    if isinstance(value, str):
        # Not the methods of a subclass: they could say anything.
        return str.__getitem__(value, slice(0, limit + 1))
    try:
        text = str(value)
    except Exception:  # noqa: BLE001  a foreign object that cannot even say what it is
        return f"<{type(value).__name__}>"
    return str.__getitem__(text, slice(0, limit + 1))


def _shown(c: str) -> str:
    if c.isprintable():
        return c
    code = ord(c)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: max(0, limit - 3)] + "..."
