"""Names of the lab's resources: parsed and formatted here and nowhere else."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Self

from nightshift_kit.errors import IdInvalid

from .errors import ConfigIdInvalid

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_OPPORTUNITY = re.compile(r"projects/[A-Za-z0-9_.\-]{1,64}/opportunities/[A-Za-z0-9_.\-]{1,128}")
# Ext4 and most others allow 255 bytes a name; ".json.deactivated" must fit as well.
_LONGEST_STEM_BYTES = 200


def _tail(name: str, collection: str, field: str) -> str:
    prefix, _, tail = name.partition("/")
    if prefix != collection or not _UUID.fullmatch(tail):
        raise IdInvalid.at(field, f'must look like "{collection}/0190…", as an earlier answer gave it')
    return tail


@dataclass(frozen=True)
class ConfigName:
    """configs/{config}: any file stem that production may have, also non-ASCII."""

    config_id: str

    @classmethod
    def parse(cls, name: str, field: str = "name") -> Self:
        """From "configs/{config}".

        Raises:
            ConfigIdInvalid: another form, or an id that could be a path: separators, dots in front, control
            or
                format characters, in any width.
        """
        prefix, _, config_id = name.partition("/")
        folded = unicodedata.normalize("NFKC", config_id)
        if (
            prefix != "configs"
            or not config_id.strip()
            or any(c in folded for c in "/\\")
            or folded.startswith(".")
            or ".." in folded
            or any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in config_id)
            or len(config_id.encode(errors="surrogatepass")) > _LONGEST_STEM_BYTES
        ):
            raise ConfigIdInvalid.at(field, 'must look like "configs/{config}", the id being a file\'s stem')
        return cls(config_id)

    @property
    def name(self) -> str:
        """Resource name."""
        return f"configs/{self.config_id}"


@dataclass(frozen=True)
class ProposalName:
    """proposals/{proposal}."""

    proposal_id: str

    @classmethod
    def parse(cls, name: str, field: str = "name") -> Self:
        """From "proposals/{proposal}". Raises IdInvalid."""
        return cls(_tail(name, "proposals", field))

    @property
    def name(self) -> str:
        """Resource name."""
        return f"proposals/{self.proposal_id}"


@dataclass(frozen=True)
class PromotionName:
    """promotions/{promotion}."""

    promotion_id: str

    @classmethod
    def parse(cls, name: str, field: str = "name") -> Self:
        """From "promotions/{promotion}". Raises IdInvalid."""
        return cls(_tail(name, "promotions", field))

    @property
    def name(self) -> str:
        """Resource name."""
        return f"promotions/{self.promotion_id}"


def check_opportunity(name: str, field: str = "opportunity") -> str:
    """`name` itself where it is "" or "projects/{project}/opportunities/{opportunity}". Raises IdInvalid."""
    if name and not _OPPORTUNITY.fullmatch(name):
        raise IdInvalid.at(field, 'must look like "projects/{project}/opportunities/{opportunity}"')
    return name
