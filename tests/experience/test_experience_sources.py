"""The importer's rules one by one, on small trees: traps, repairs, and trees that mean harm."""

# ruff: noqa: RUF001 - prompts in languages whose letters look like others

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightshift_experience.languages import LanguageDetector
from nightshift_experience.runs import PRIVACY_WITHHELD, Outcome
from nightshift_experience.sources.devserver.configs import interception_config, read_known_configs
from nightshift_experience.sources.devserver.devices import ProductionRule, session_key
from nightshift_experience.sources.devserver.favorites import read_favorites
from nightshift_experience.sources.devserver.instants import local_us, span_us
from nightshift_experience.sources.devserver.layout import FoundProblem, FoundRun, open_export_root, walk
from nightshift_experience.sources.devserver.metadata import parse_metadata
from nightshift_experience.sources.devserver.reading import RunFolder, Unreadable
from nightshift_experience.sources.devserver.record import ReadingRules, ReadRun, is_unchanged, read_run
from tests.experience.experience_support import PLATFORM

ZONE = ZoneInfo("Europe/Berlin")
RULES = ReadingRules(ZONE, LanguageDetector())
BROWSER = "11111111-2222-4333-8444-555555555555_2026-02-02"
RUN = "run_1770000000000_abcdef"
IMAGE = {"sequence": 3, "type": "output_image", "filename": "03.png", "metadata": {"config": "o", "seed": 7}}
ERROR = {
    "sequence": 4,
    "type": "error",
    "filename": "04_error.json",
    "metadata": {"error_type": "safety_blocked"},
}


def write_run(root: Path, metadata: Any, files: dict[str, str] | None = None, path: str = "") -> Path:
    folder = root / (path or f"2026-02-02/{BROWSER}/{RUN}")
    folder.mkdir(parents=True)
    text = (
        metadata if isinstance(metadata, bytes) else json.dumps({"run_id": folder.name, **metadata}).encode()
    )
    (folder / "metadata.json").write_bytes(text)
    for name, content in (files or {}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    return folder


def read_all(root: Path) -> dict[str, ReadRun]:
    fd = open_export_root(str(root))
    found: dict[str, ReadRun] = {}
    try:
        for one in walk(fd):
            if isinstance(one, FoundProblem):
                found[one.path] = ReadRun(one.path, None, one.reason, one.detail)
                continue
            with RunFolder(one.parent_fd, one.name) as folder:
                found[one.path] = read_run(one, folder, RULES)
    finally:
        os.close(fd)
    return found


def read_one(root: Path) -> Any:
    (read,) = read_all(root).values()
    assert read.record is not None, (read.skip_reason, read.skip_detail)
    return read.record


# How a run ended.


@pytest.mark.parametrize(
    ("entities", "expected"),
    [
        ([IMAGE], Outcome.SUCCEEDED),
        ([IMAGE, ERROR], Outcome.BLOCKED),
        ([{**ERROR, "sequence": 1}, IMAGE], Outcome.SUCCEEDED),
        ([{**IMAGE, "sequence": 9}, ERROR], Outcome.SUCCEEDED),
        ([{**ERROR, "metadata": {"error_type": "timeout"}}], Outcome.FAILED),
        ([{**ERROR, "metadata": {}}], Outcome.FAILED),
        ([{"sequence": 1, "type": "input", "filename": "x"}], Outcome.INCOMPLETE),
        ([], Outcome.INCOMPLETE),
        ([{"sequence": 1, "type": "p5", "filename": "x.js"}], Outcome.SUCCEEDED),
        ([{"sequence": "no", "type": "tonejs"}, 7, None, "x"], Outcome.SUCCEEDED),
    ],
)
def test_the_last_media_or_error_decides(tmp_path: Path, entities: list[Any], expected: Outcome) -> None:
    write_run(tmp_path, {"entities": entities, "current_state": {"stage": 0}})
    assert read_one(tmp_path).outcome == expected


def test_entities_of_a_dict_count_where_they_are_available(tmp_path: Path) -> None:
    entities = {
        "01_input": {"type": "text", "available": True},
        "06_output_image": {"type": "image", "available": False},
    }
    folder = write_run(tmp_path, {"schema": "old_config", "entities": entities}, {"01_input.txt": "a fox"})
    record = read_one(tmp_path)
    assert (record.outcome, record.prompt, record.config_name) == (Outcome.INCOMPLETE, "a fox", "old_config")
    entities["06_output_image"]["available"] = True
    (folder / "metadata.json").write_text(json.dumps({"run_id": RUN, "entities": entities}))
    assert read_one(tmp_path).outcome == Outcome.SUCCEEDED


# Configs, devices, times.


def test_config_name_is_an_interception_unless_known_as_an_output() -> None:
    known = read_known_configs(str(PLATFORM))
    assert "schnellschuss" in known.interceptions, "a deactivated config is known too"
    assert "klischeefilter_ü" in known.interceptions
    assert known.outputs
    assert not known.outputs & known.interceptions
    assert interception_config("explicit", "name", "out", False) == "explicit"
    assert interception_config("", "name", "out", False) == "name"
    assert interception_config("", "out", "out", False) == ""
    assert interception_config("", "name", "", True) == ""
    assert read_known_configs("/nowhere").interceptions == frozenset()


@pytest.mark.parametrize(
    ("device", "key", "production"),
    [
        (BROWSER, BROWSER, True),
        (BROWSER + "_cmp0", BROWSER, True),
        (BROWSER + "_persona1770000000", BROWSER, True),
        (BROWSER + "_cmp0_cmp1", BROWSER + "_cmp0", False),
        ("A1111111-2222-4333-8444-555555555555_2026-02-02", None, False),
        ("11111111-2222-3333-8444-555555555555_2026-02-02", None, False),
        ("k3j9x2ab" + "mbq1x9zz" + "_2026-02-02", None, True),
        ("k3j9x2abmbq1x9zz" + "_2026-02-02x", None, False),
        ("dev_0123456789ab", None, False),
        ("api_0123456789ab", None, False),
        ("canvas_0123456789ab", None, False),
        ("test-tablet-07", None, False),
        ("lab_1_2026-02-02", None, False),
        ("", "", False),
    ],
)
def test_production_is_read_off_the_device(device: str, key: str | None, production: bool) -> None:
    expected = device if key is None else key
    assert session_key(device) == expected
    assert ProductionRule().is_production(expected) is production


def test_deny_list_and_workshop_dates_narrow_production() -> None:
    assert not ProductionRule(deny=["11111111-*"]).is_production(BROWSER)
    assert ProductionRule(workshop_dates=["2026-02-02"]).is_production(BROWSER)
    assert not ProductionRule(workshop_dates=["2026-02-03"]).is_production(BROWSER)


def test_times_are_those_of_the_id_else_local(tmp_path: Path) -> None:
    write_run(tmp_path, {"timestamp": "2026-02-02T03:40:00"})
    assert read_one(tmp_path).start_us == 1_770_000_000_000_000
    assert local_us("2026-07-01T12:00:00", ZONE) == 1_782_900_000_000_000
    assert local_us("1970-01-01T00:00:00", ZONE) is None
    assert local_us("rubbish", ZONE) is None
    assert span_us("2026-02-02T03:40:00", "2026-02-02T03:40:01.5") == 1_500_000
    assert span_us("2026-02-02T03:40:00", "2026-02-02T03:39:00") is None
    assert span_us("2026-02-02T03:40:00", "2026-02-02T03:40:01Z") is None


def test_the_folder_wins_over_a_null_device(tmp_path: Path) -> None:
    write_run(tmp_path, {"device_id": None}, path=f"2026-02-02/dev_0123456789ab/{RUN}")
    assert read_one(tmp_path).device == "dev_0123456789ab"


@pytest.mark.parametrize("path", [RUN, f"2026-02-02/{RUN}"])
def test_older_layouts_have_the_device_in_the_record_if_at_all(tmp_path: Path, path: str) -> None:
    write_run(tmp_path, {"device_id": "x"}, path=path)
    assert read_one(tmp_path).device == "x"


# Privacy.


@pytest.mark.parametrize(
    ("error", "private"),
    [
        ({"error_type": "safety_blocked", "details": {"check": "dsgvo", "input_text": "Name"}}, True),
        ({"error_type": "safety_blocked", "details": {"check": "age_filter"}}, False),
        ({"error_type": "safety_blocked", "details": {"check": "guard_model"}}, False),
        ({"error_type": "safety_blocked", "details": {"check": "a_check_of_next_year"}}, True),
        ({"error_type": "safety_blocked", "details": {}}, True),
        ({"error_type": "safety_blocked", "message": "personal data", "details": {"check": "vlm"}}, True),
        ({"error_type": "privacy_block"}, True),
        ({"error_type": "timeout", "details": {"config": "x"}}, False),
        ("not an object", True),
        (None, True),
    ],
)
def test_text_of_a_privacy_block_is_left_behind(tmp_path: Path, error: Any, private: bool) -> None:
    files = {
        "final/01_input.txt": "Erika Mustermann und ein Hund",
        "prompting_process/001_input.txt": "Erika M.",
    }
    if error is not None:
        files["final/04_error.json"] = json.dumps(error)
    told = error.get("error_type") if isinstance(error, dict) else "safety_blocked"
    entities = [
        {"sequence": 1, "type": "input", "filename": "01_input.txt"},
        {**ERROR, "metadata": {"error_type": told}},
    ]
    write_run(tmp_path, {"entities": entities}, files)
    (read,) = read_all(tmp_path).values()
    assert read.record is not None
    assert (read.record.prompt is None) is private
    assert (PRIVACY_WITHHELD in read.record.flags) is private
    assert ("Erika" in repr(read)) is not private
    assert read.record.language == "de"
    if private:
        assert read.record.prompt_digest == ""


def test_a_retry_after_a_privacy_block_stays_withheld(tmp_path: Path) -> None:
    files = {
        "final/01_input.txt": "a dog",
        "final/02_error.json": json.dumps(
            {"error_type": "safety_blocked", "details": {"check": "dsgvo", "input_text": "Erika"}}
        ),
    }
    entities = [
        {**ERROR, "sequence": 1, "filename": "02_error.json"},
        {"sequence": 2, "type": "input", "filename": "01_input.txt"},
        IMAGE,
    ]
    write_run(tmp_path, {"entities": entities}, files)
    record = read_one(tmp_path)
    assert (record.outcome, record.prompt) == (Outcome.SUCCEEDED, None)


# Repairs.


@pytest.mark.parametrize(
    ("data", "flags"),
    [
        (b'\xef\xbb\xbf{"run_id": "r"}', ["bom_removed"]),
        (b'{"run_id": "r", "x": NaN, "y": -Infinity}', ["nan_repaired"]),
        (b'{"run_id": "r", "x": 1e999}', ["nan_repaired"]),
        (b'{"run_id": "r", "x": ' + b"9" * 5000 + b"}", ["number_repaired"]),
        (b'{"run_id": "r", "user": "g\xe4st"}', ["encoding_repaired"]),
        (b'{"run_id": "r", "x": "\\ud800"}', ["unicode_repaired"]),
        (b'{"run_id": "q", "run_id": "r"}', ["duplicate_keys"]),
        (b'{"run_id" : "q", "run_id" : "r"}', ["duplicate_keys"]),
        (b'{"run_id": "r", "x": [{"a": 1, "a": 2}]}', ["duplicate_keys"]),
        (b'{"run_id": "r",\r\n "x": "a \\":b"}', []),
    ],
)
def test_what_can_be_repaired_is_and_says_so(data: bytes, flags: list[str]) -> None:
    document, told = parse_metadata(data)
    assert document["run_id"] == "r"
    assert told == flags
    assert document.get("x") is None or flags not in (["nan_repaired"], ["number_repaired"])
    json.dumps(document, allow_nan=False).encode()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "RECORD_EMPTY"),
        (b" \n\0", "RECORD_EMPTY"),
        (b'{"run_id": "r"', "RECORD_TRUNCATED"),
        (b'{"run_id": "r', "RECORD_TRUNCATED"),
        (b'{"a": {"b": 1}', "RECORD_TRUNCATED"),
        (b'{"a": NaN, "b": [', "RECORD_TRUNCATED"),
        (b'{"a": 1,, "b": 2}', "RECORD_MALFORMED"),
        (b"42", "RECORD_NOT_OBJECT"),
        (b"null", "RECORD_NOT_OBJECT"),
        (b"[NaN]", "RECORD_NOT_OBJECT"),
        (b"[" * 100_000, "NESTING_TOO_DEEP"),
        (b'{"a":' * 300 + b"1" + b"}" * 300, "NESTING_TOO_DEEP"),
        (b'{"a": "' + b"x" * (16 << 20) + b'"}', "RECORD_TOO_LARGE"),
    ],
)
def test_what_cannot_be_read_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(Unreadable) as caught:
        parse_metadata(data)
    assert caught.value.reason == reason


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_a_record_or_a_reason(data: bytes) -> None:
    try:
        document, _ = parse_metadata(data)
    except Unreadable as error:
        assert error.reason.isupper()
    else:
        json.dumps(document, allow_nan=False).encode()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
keys = [
    "run_id",
    "timestamp",
    "config_name",
    "device_id",
    "entities",
    "models_used",
    "comparison_group",
    "type",
]


@given(st.dictionaries(st.sampled_from([*keys, "prompting_process", "interception_config"]), json_values))
def test_any_object_is_read_without_an_exception(document: dict[str, Any]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        run = root / "2026-02-02" / BROWSER / RUN
        run.mkdir(parents=True)
        (run / "metadata.json").write_text(json.dumps(document))
        (read,) = read_all(root).values()
        assert read.record is not None or read.skip_reason


def test_a_gigantic_prompt_is_cut_and_known_by_its_whole(tmp_path: Path) -> None:
    entities = [{"sequence": 1, "type": "input", "filename": "01_input.txt"}]
    big = "ein Fuchs " * 300_000
    write_run(tmp_path, {"entities": entities}, {"final/01_input.txt": big})
    other = f"2026-02-02/{BROWSER}/run_1770000000001_abcdef"
    write_run(tmp_path, {"entities": entities}, {"final/01_input.txt": big + "!"}, path=other)
    first, second = (read.record for read in read_all(tmp_path).values())
    assert first is not None and second is not None
    assert first.prompt == second.prompt
    assert len((first.prompt or "").encode()) <= 64 * 1024
    assert first.prompt_digest != second.prompt_digest
    assert "prompt_truncated" in first.flags


# Trees that mean harm.


def test_links_fifos_and_paths_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    root = tmp_path / "root"
    base = root / "2026-02-02" / BROWSER
    names = [
        "../../../../secret.txt",
        str(secret),
        "link.txt",
        "pipe",
        "prompting_process/../../x",
        "a\0b",
        "..",
    ]
    for number, name in enumerate(names):
        entities = [{"sequence": 1, "type": "input", "filename": name}]
        folder = write_run(
            root, {"entities": entities}, path=f"2026-02-02/{BROWSER}/run_177000000000{number}_abcdef"
        )
        (folder / "link.txt").symlink_to(secret)
        os.mkfifo(folder / "pipe")
    linked_final = write_run(
        root, {"entities": [{"type": "input", "filename": "secret.txt"}]}, path=f"{base}/run_x"
    )
    (linked_final / "final").symlink_to(tmp_path)
    for kind in ("link", "pipe", "folder"):
        folder = base / f"run_metadata_{kind}"
        folder.mkdir()
        if kind == "link":
            (folder / "metadata.json").symlink_to(secret)
        elif kind == "pipe":
            os.mkfifo(folder / "metadata.json")
        else:
            (folder / "metadata.json").mkdir()
    (base / "loop").symlink_to("..")
    (root / "2026-02-03").symlink_to(root / "2026-02-02")
    (root / os.fsdecode(b"2026-02-02/\xff")).mkdir()
    found = read_all(root)
    assert "secret" not in "".join(read.record.prompt or "" for read in found.values() if read.record)
    reasons = {path.rpartition("/")[2]: read.skip_reason for path, read in found.items() if not read.record}
    assert reasons == {
        "run_metadata_link": "SYMLINK",
        "run_metadata_pipe": "NOT_REGULAR_FILE",
        "run_metadata_folder": "NOT_REGULAR_FILE",
        "loop": "SYMLINK",
        "2026-02-03": "SYMLINK",
        "\ufffd": "NAME_INVALID",
    }
    assert sum(read.record is not None for read in found.values()) == len(names) + 1


def test_favourites_are_read_once_each_and_never_through_a_link(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    path = tmp_path / "favorites.json"
    try:
        assert read_favorites(fd, ZONE) is None
        entry = {"run_id": "a", "added_at": "2026-02-02T10:00:00", "user_note": "Erika"}
        path.write_text(json.dumps({"favorites": [entry, entry, {"run_id": None}, 7, {"run_id": "b"}]}))
        favorites = read_favorites(fd, ZONE)
        assert favorites is not None
        assert [(f.run_id, f.added_us) for f in favorites] == [("a", 1_770_022_800_000_000), ("b", 0)]
        assert "Erika" not in repr(favorites)
        for broken in ("{", '{"favorites": {}}', "[]"):
            path.write_text(broken)
            with pytest.raises(Unreadable):
                read_favorites(fd, ZONE)
        path.unlink()
        path.symlink_to("/etc/passwd")
        with pytest.raises(Unreadable):
            read_favorites(fd, ZONE)
    finally:
        os.close(fd)


# Fingerprints.


def test_an_unchanged_folder_is_told_by_its_times_and_any_change_shows(tmp_path: Path) -> None:
    entities = [{"sequence": 1, "type": "input", "filename": "01_input.txt"}]
    folder = write_run(tmp_path, {"entities": entities}, {"final/01_input.txt": "a fox"})
    for path in (folder, *folder.rglob("*")):
        os.utime(path, ns=(1, 1))
    fd = open_export_root(str(tmp_path))
    (found,) = [one for one in walk(fd) if isinstance(one, FoundRun)]

    def signed() -> tuple[bytes, list[str]]:
        from nightshift_experience.sources.devserver.fingerprint import signature

        with RunFolder(parent, found.name) as run:
            read = read_run(found, run, RULES)
            return signature(run, read.names)[0], read.names

    parent = os.open(folder.parent, os.O_RDONLY)
    try:
        known, names = signed()
        with RunFolder(parent, found.name) as run:
            assert is_unchanged(run, known, names)
            assert not is_unchanged(run, b"", names)
        for change in (
            lambda: (folder / "final/01_input.txt").write_text("a Fox"),
            lambda: (folder / "final/02_new.txt").write_text(""),
            lambda: (folder / "chat_history.json").write_text("[]"),
            lambda: os.utime(folder / "metadata.json", ns=(1, 2)),
        ):
            change()
            with RunFolder(parent, found.name) as run:
                assert not is_unchanged(run, known, names)
            known, names = signed()
    finally:
        os.close(parent)
        os.close(fd)


def test_a_signature_taken_within_the_clock_tick_of_a_change_is_not_kept(tmp_path: Path) -> None:
    folder = write_run(tmp_path, {"entities": []})
    (read,) = read_all(tmp_path).values()
    fresh = read.signature
    import time

    time.sleep(0.1)
    (read,) = read_all(tmp_path).values()
    assert fresh == b""
    assert read.signature != b""
    assert folder.exists()


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("ein Fuchs unter dem Küchentisch", "de"),
        ("a fox under the kitchen table", "en"),
        ("un renard sous la table de la cuisine", "fr"),
        ("un zorro debajo de la mesa de la cocina", "es"),
        ("mutfak masasının altında bir tilki", "tr"),
        ("лисиця під кухонним столом", "uk"),
        ("лисица под кухненската маса", "bg"),
        ("ثعلب تحت طاولة المطبخ", "ar"),
        ("שועל מתחת לשולחן המטבח", "he"),
        ("식탁 아래의 여우", "ko"),
        ("12345 !!", ""),
        ("", ""),
    ],
)
def test_languages_of_short_prompts(text: str, language: str) -> None:
    assert RULES.detector.detect(text) == language


def test_a_broken_text_is_told_by_what_was_made_of_it() -> None:
    assert RULES.detector.detect("Gr\ufffd\ufffde", "Alles ist schon geschehen, das Licht wandert") == "de"
