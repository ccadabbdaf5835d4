"""Plain data is read out of a pickle as pickle itself would; anything that would run is refused, and does not run."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agvas_core.contract.errors import UsageError
from agvas_core.data.datasets.referring import read_plain

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@settings(max_examples=60, deadline=None)
@given(value=PLAIN, protocol=st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_data_comes_out_as_it_went_in(value: Any, protocol: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("p") / "refs.p"
    path.write_bytes(pickle.dumps(value, protocol))
    assert read_plain(path) == value


def test_what_stands_in_two_places_is_read_in_both(tmp_path: Path) -> None:
    shared = ["left", "man"]
    path = tmp_path / "refs.p"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps([{"a": shared, "b": (shared, 1, 2)}] * 1500, protocol))
        assert read_plain(path) == [{"a": shared, "b": (shared, 1, 2)}] * 1500


class _Runs:
    """Makes the file that its argument names, when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_would_run_something_is_refused_and_does_not_run(protocol: int, tmp_path: Path) -> None:
    mark, path = tmp_path / "it_ran", tmp_path / "refs.p"
    path.write_bytes(pickle.dumps([{"sent": "a man"}, _Runs(mark)], protocol))
    with pytest.raises(UsageError, match=r"refs.p would do more than hold data \(.*not opened"):
        read_plain(path)
    assert not mark.exists()


def test_half_a_file_and_no_file_are_told(tmp_path: Path) -> None:
    path = tmp_path / "refs.p"
    whole = pickle.dumps([{"sent": "a man", "id": 3}], 2)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UsageError, match="no whole pickle"):
            read_plain(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_plain(tmp_path / "no.p")
