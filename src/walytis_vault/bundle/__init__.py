"""Bundles: the whole record of a vault as one file that anybody can check, with neither content nor secrets.

`export` makes them on a node, `verify` checks them anywhere. Format: docs/bundle-format.md.
"""

__all__: list[str] = []
