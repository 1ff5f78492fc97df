"""What is special about this engine; what every engine must do is tested by enginecmp.testing (see pyproject.toml)."""

from types import SimpleNamespace

import enginecmp_my_engine as plugin
import pytest

from enginecmp import UnknownOption


def test_it_says_what_it_can_load():
    info = plugin.cmp_engine()
    assert info.name == "my_engine"
    assert "F32" in info.quantizations  # without it nothing can be proven exact


def test_an_option_it_does_not_know_is_refused():
    with pytest.raises(UnknownOption, match="thraeds"):
        plugin.cmp_load(model=None, options=SimpleNamespace(extra={"thraeds": "4"}))
