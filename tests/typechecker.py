"""The type checker of the test run: beartype, with an int where a float is asked for."""

from beartype import BeartypeConf, beartype

tower = beartype(conf=BeartypeConf(is_pep484_tower=True))
