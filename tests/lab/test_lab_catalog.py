"""The reader: every shape that production has, and everything that may lie between."""

# ruff: noqa: RUF001 - signs that look like others are the test

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightshift_kit.errors import IdInvalid
from nightshift_kit.safe_files import Root
from nightshift_lab.catalog import Catalog, load, parse
from nightshift_lab.content import file_bytes, whole_numbers
from nightshift_lab.errors import ConfigIdInvalid, ConfigUnknown, PlatformMissing
from nightshift_lab.paths import check_path, config_path
from nightshift_lab.platform import open_root
from nightshift_lab.resources import ConfigName, PromotionName, ProposalName
from nightshift_lab.validation.identity import fold
from tests.lab.conftest import INTERCEPTION


@pytest.fixture
def root(platform: Path) -> Iterator[Root]:
    with open_root(platform) as opened:
        yield opened


def read(root: Root) -> Catalog:
    return load(root)


def test_the_miniature_platform(root: Root) -> None:
    catalog = read(root)
    assert len(catalog.interception) == len(catalog.contents) == 14
    assert catalog.get("klischeefilter_ü").content is not None
    assert not [file for file in catalog.files if file.problem]
    assert catalog.taken[fold("SCHNELLSCHUSS")].endswith("schnellschuss.json.deactivated")
    assert fold("img_standard") in catalog.taken
    assert fold("my_rule") in catalog.taken
    assert catalog.surroundings.output_configs >= {"img_standard", "tonejs_code"}
    assert catalog.safety_words["youth"] == {"placeholder-word-c"}
    with pytest.raises(ConfigUnknown):
        catalog.get("schnellschuss")


SHAPES = {
    "lyrics": {
        "config_id": "LyricsTags",
        "pipeline": "lyrics",
        "description": "text",
        "chunks": ["a"],
        "model_preferences": {},
    },
    "string_name": {"pipeline": "text_transformation", "name": "Bauhaus"},
    "no_context": {"pipeline": "text_transformation"},
    "string_context": {"pipeline": "text_transformation", "context": "You are …"},
    "odd_context": {"pipeline": "text_transformation", "context": ["a"]},
    "loras": {
        "pipeline": "text_transformation",
        "meta": {"loras": [{"name": "x", "strength": 0.5}], "wikipedia": True},
    },
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_production(root: Root, shape: str) -> None:
    (root.path / INTERCEPTION / f"{shape}.json").write_text(json.dumps(SHAPES[shape]))
    file = read(root).get(shape)
    assert (file.content, file.problem) == (SHAPES[shape], "")


def test_other_claims_to_an_id_count(root: Root) -> None:
    for shape in ("lyrics", "string_name"):
        (root.path / INTERCEPTION / f"{shape}.json").write_text(json.dumps(SHAPES[shape]))
    taken = read(root).taken
    assert taken["bauhaus"].endswith("string_name.json")
    assert taken["lyricstags"].endswith("lyrics.json")


BROKEN = {
    "truncated": (b'{"pipeline": "x"', "not JSON"),
    "empty": (b"", "not JSON"),
    "list": (b"[1]", "not a JSON object"),
    "null": (b"null", "not a JSON object"),
    "latin1": ('{"name": "ü"}'.encode("latin-1"), "not UTF-8"),
    "nan": (b'{"parameters": {"temperature": NaN}}', "NaN"),
    "infinity": (b'{"a": [-Infinity]}', "infinite"),
    "surrogate": (b'{"a": "\\ud800"}', "surrogate"),
    "surrogate key": (b'{"\\ud800": 1}', "surrogate"),
    "digits": (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
    "more digits": (b'{"a": ' + b"9" * 400 + b"}", "digits"),
    "deep": (b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}", "too deep"),
    "very deep": (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too deep"),
}


@pytest.mark.parametrize(("data", "problem"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_files_are_listed_with_the_reason(root: Root, data: bytes, problem: str) -> None:
    (root.path / INTERCEPTION / "broken.json").write_bytes(data)
    catalog = read(root)
    file = catalog.get("broken")
    assert problem in file.problem
    assert file.content is None
    assert len(file.digest) == 64
    assert "broken" not in catalog.contents
    assert "broken" in catalog.taken


def test_marks_and_line_ends_are_read_over(root: Root) -> None:
    data = b"\xef\xbb\xbf" + b'{\r\n  "pipeline": "text_transformation"\r\n}\r\n'
    (root.path / INTERCEPTION / "dos.json").write_bytes(data)
    assert read(root).get("dos").content == {"pipeline": "text_transformation"}


def test_what_is_no_file_is_listed_and_not_followed(root: Root) -> None:
    folder = root.path / INTERCEPTION
    (folder / "link.json").symlink_to(root.path / "config.py")
    (folder / "hard.json").hardlink_to(root.path / "config.py")
    os.mkfifo(folder / "fifo.json")
    (folder / "folder.json").mkdir()
    (folder / "loop").symlink_to(folder)
    (folder / "large.json").write_bytes(b'{"a": "' + b"x" * 2_000_000 + b'"}')
    catalog = read(root)
    problems = {file.config_id: file.problem.split(":")[0] for file in catalog.interception if file.problem}
    assert problems == {
        "link": "PATH_ESCAPE",
        "hard": "PATH_ESCAPE",
        "fifo": "NOT_REGULAR_FILE",
        "folder": "NOT_REGULAR_FILE",
        "large": "NOT_REGULAR_FILE",
    }
    assert len(catalog.contents) == 14


def test_a_name_that_is_not_utf8(root: Root) -> None:
    name = os.fsdecode(b"caf\xe9.json")
    (root.path / INTERCEPTION / name).write_text("{}")
    names = [file.config_id for file in read(root).interception if file.problem]
    assert len(names) == 1
    assert names[0].encode()


def test_ids_differ_by_case_and_width_and_marks(root: Root) -> None:
    for name in ("Ärger", "ＷＩＤＥ", "Straße"):
        (root.path / INTERCEPTION / f"{name}.json").write_text("{}")
    taken = read(root).taken
    assert {fold("ärger"), fold("A\u0308RGER"), "wide", "strasse"} <= set(taken)


def test_no_platform(tmp_path: Path) -> None:
    for path in (None, tmp_path / "gone"):
        with pytest.raises(PlatformMissing):
            open_root(path)
    with open_root(tmp_path) as empty, pytest.raises(PlatformMissing):
        load(empty)


def test_bytes_of_a_config_are_the_same_each_time() -> None:
    content: dict[str, Any] = {
        "b": 1.0,
        "a": [2.0, 0.5, True, None],
        "name": {"de": "ü", "tr": "x", "en": "y"},
        "pipeline": "p",
    }
    data = file_bytes(content)
    assert file_bytes(json.loads(data)) == data == file_bytes(dict(reversed(list(content.items()))))
    assert data.decode() == (
        '{\n  "pipeline": "p",\n  "name": {\n    "en": "y",\n    "de": "ü",\n    "tr": "x"\n  },\n'
        '  "a": [\n    2,\n    0.5,\n    true,\n    null\n  ],\n  "b": 1\n}\n'
    )
    for bad in (float("nan"), float("inf"), "\ud800"):
        with pytest.raises(ValueError, match=r".+"):
            file_bytes({"a": bad})
    assert whole_numbers([1e300, 2.0**60]) == [1e300, 2.0**60]


_json = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(), _json, max_size=5))
def test_any_content_survives_the_file(content: dict[str, object]) -> None:
    try:
        data = file_bytes(content)  # type: ignore[arg-type]
    except ValueError:
        return
    value, problem = parse(data)
    assert not problem
    assert value == whole_numbers(content)  # type: ignore[arg-type]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    value, problem = parse(data)
    assert (value is None) == bool(problem)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40))
def test_any_name_is_an_id_or_refused(text: str) -> None:
    try:
        name = ConfigName.parse(f"configs/{text}")
    except ConfigIdInvalid:
        return
    assert name.name == f"configs/{text}"
    assert "/" not in name.config_id
    for kind in (ProposalName, PromotionName):
        with pytest.raises(IdInvalid):
            kind.parse(text)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_any_path_but_one_is_refused(path: str) -> None:
    try:
        assert check_path(path, "abc") == config_path("abc")
    except Exception as error:  # noqa: BLE001 - the reason is what counts
        assert getattr(error, "reason", "") in {"PATH_ESCAPE", "PROTECTED_FILE"}
        assert path not in ("", config_path("abc"))
    with pytest.raises(ConfigIdInvalid):
        config_path("../abc")
