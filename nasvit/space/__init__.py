"""Search spaces: a YAML file is parsed and checked (`file`), follows rules (`rules`), speaks Arch (`search_space`, fast `memory`)."""

from nasvit.space.rules import Parameter
from nasvit.space.search_space import SearchSpace, resolve, shipped

__all__ = ["Parameter", "SearchSpace", "resolve", "shipped"]
