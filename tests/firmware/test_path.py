"""The firmware package finds its files and lists them when it does not."""

from __future__ import annotations

import pytest

from edgesdk_firmware import path


@pytest.mark.parametrize("name", ["nothing.v", "../edgesdk/__init__.py", "/etc/hostname"])
def test_an_unknown_file_or_one_outside_is_refused(name: str) -> None:
    with pytest.raises(FileNotFoundError, match="no firmware file"):
        path(name)


def test_a_file_of_the_package_is_found() -> None:
    assert path("py.typed").is_file()
