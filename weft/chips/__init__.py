"""The catalogue of real GPUs: a name in, a Chip out. Data lies in weft/chips/data, one TOML file per chip.

`find_chip("h100")` gives one, `all_chips()` all of them, `Chip.facts` every number with its source and date.
"""

from __future__ import annotations

from weft.chips.chip import FIELDS, KINDS, Capability, Chip, Fact, Source, all_chips, find_chip

__all__ = ["FIELDS", "KINDS", "Capability", "Chip", "Fact", "Source", "all_chips", "find_chip"]
