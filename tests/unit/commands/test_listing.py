from __future__ import annotations

import pytest

from nasvit.commands.listing import KINDS, listing
from nasvit.errors import ConfigError


@pytest.mark.parametrize("kind", KINDS)
def test_everything_listed_has_a_name_and_a_line(kind: str) -> None:
    rows = listing(kind)
    assert rows and len({name for name, _, _ in rows}) == len(rows)
    assert all(name and package and text.strip() and "\n" not in text for name, package, text in rows)


def test_an_unknown_kind_is_refused_with_the_accepted_ones() -> None:
    with pytest.raises(ConfigError, match="did you mean 'mixers'"):
        listing("mixer")
