"""Takes damaged ciphertext back to the state of one that is still coming, so that only what is broken is fetched.

Each step can be repeated, and whatever a crash leaves in between is what the next start takes for a content
whose bytes are not here. Refuses nothing: the caller found the damage. Used by content_store.py.
"""

from __future__ import annotations

from walytis_vault.adapters.storage.failures import storage_errors
from walytis_vault.adapters.storage.index import IN_BLOB
from walytis_vault.adapters.storage.state import StoreState
from walytis_vault.domain.faults import fault
from walytis_vault.domain.ids import ContentId, Root


def reopen_blob(state: StoreState, content_id: ContentId, root: Root) -> bool:
    """Let a blob file count as incoming; False when the content lies in no blob file.

    Raises:
        ForgottenError, StorageError.
    """
    with state.lock:
        state.check_writable()
        state.check_not_gone(content_id)
        row = state.index.get(content_id)
        if row is None or row.place != IN_BLOB or row.ciphertext_length is None:
            return False
        state.index.begin_partial(content_id, root, row.ciphertext_length)
        fault("mend.after_note")
        blob = state.blobs.blob_path(content_id)
        with storage_errors("take a damaged blob file back"):
            if state.fs.size(blob) is not None:
                state.fs.rename(blob, state.blobs.part_path(content_id))
        state.blobs.sync_folder()
        fault("mend.after_rename")
        state.index.lose_bytes([content_id], noted=True)
    return True
