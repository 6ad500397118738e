"""What moves between nodes: tunnels through libp2p, and content keys sealed for one asker.

Authentication is above the tunnels (docs/peer-protocol.md); a sealed key opens for one request only.
"""

from walytis_vault.adapters.exchange.key_transfer import KeyAsk, KeyRequest, OpenRequest, seal_key, statement_of
from walytis_vault.adapters.exchange.tunnels import BULK, PeerTunnels, free_port

__all__ = ["BULK", "KeyAsk", "KeyRequest", "OpenRequest", "PeerTunnels", "free_port", "seal_key", "statement_of"]
