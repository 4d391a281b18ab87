"""Lines that the runner prints."""

from __future__ import annotations

import io
import json

import pytest

from fishnet.runner import command


@pytest.mark.parametrize(
    ("name", "encoding", "text"),
    [("Schäfer", "utf-8", "Schäfer"), ("Schäfer", "ascii", "Sch\\u00e4fer"), ("a\udc80", "utf-8", "a\\udc80")],
)
def test_names_are_readable_where_the_terminal_can_show_them(
    name: str, encoding: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr("sys.stdout", out)
    command._print({"label": name})
    line = out.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert text in line
    assert json.loads(line) == {"label": name}
