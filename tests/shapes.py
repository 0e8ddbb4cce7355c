"""The checker of shapes and types that pytest switches on for the whole library."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
