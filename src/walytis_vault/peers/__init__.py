"""Nodes talking to nodes: the peer door, links to other members' doors, fetching, inviting, joining.

Specification: docs/peer-protocol.md; reasons: docs/adr/0008-peers.md.
"""

__all__: list[str] = []
