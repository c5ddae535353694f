"""The names of the placement rules, apart from their code, so that settings need not load NumPy to know them."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

#: How domains and nodes are chosen; docs/adr/0011 compares them.
RuleName: TypeAlias = Literal["flat", "tree"]
#: Weighted rendezvous over all nodes (`placement.flat`): moves the least.
RULE_FLAT: Final = "flat"
#: The classic CRUSH descent (`placement.tree`).
RULE_TREE: Final = "tree"
DEFAULT_RULE: Final[RuleName] = RULE_FLAT
