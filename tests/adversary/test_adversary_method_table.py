"""docs/methods.md has every method that is served, as its option says; every refusal has its reason."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import nightshift_experience
import nightshift_kit
import nightshift_lab
import nightshift_monitor
import nightshift_skills
import nightshift_trainer
from nightshift.type.v1 import policy_pb2
from nightshift_kit.errors import Code, NightshiftError
from tests.adversary.test_adversary_methods import METHODS

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
PACKAGES = (
    nightshift_experience,
    nightshift_kit,
    nightshift_lab,
    nightshift_monitor,
    nightshift_skills,
    nightshift_trainer,
)


def test_the_page_has_every_method_that_is_served() -> None:
    rows = {}
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 6 and cells[0].startswith("`"):
            rows[cells[0].strip("`")] = cells[1:]
    # The very table that is attacked: a service that it lacks would be on the page alone.
    served = {rule.name: rule for _, _, rule in METHODS.values()}
    assert set(rows) == set(served)
    for name, rule in served.items():
        kind, callers, tier, single_use, skills = rows[name]
        assert kind == policy_pb2.MethodKind.Name(rule.kind.value).removeprefix("METHOD_KIND_").lower()
        assert callers == (", ".join(rule.callers) or "any")
        assert tier == (rule.tier.name if rule.tier is not None else "")
        assert single_use == ("yes" if rule.single_use else "")
        named = {skill.strip("` ") for skill in skills.split(",") if skill}
        assert ("plug-ins" in named) == rule.plugins
        assert {f"skills/{skill}" for skill in named - {"plug-ins"}} == set(rule.skills)


def test_every_refusal_has_a_code_and_a_reason() -> None:
    for package in PACKAGES:
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name.rpartition(".")[2] == "errors":
                importlib.import_module(module.name)
    product = [kind for kind in _below(NightshiftError) if kind.__module__.startswith("nightshift_")]
    assert len(product) > 60
    for kind in product:
        assert isinstance(kind.code, Code), kind
        # What another service says brings its own.
        if kind.__name__ not in ("Upstream", "Relayed"):
            assert re.fullmatch(r"[A-Z][A-Z0-9_]+", kind.reason), kind


def _below(kind: type[NightshiftError]) -> Iterator[type[NightshiftError]]:
    for one in kind.__subclasses__():
        yield one
        yield from _below(one)
