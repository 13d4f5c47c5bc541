"""A whole upgrade on a server, and the way back, while it is searched and edited and its drivers are killed."""

from drill import drill
from qdrant_server import running


def test_no_search_fails_and_no_document_is_lost_or_comes_back(tiny_model, encoder_cache, tmp_path):
    with running(tmp_path / "server", "") as server:
        done = drill(server, tiny_model, encoder_cache, tmp_path, 150)
    assert not done.searched.failed
    assert not done.searched.missed
    assert len(done.searched.seconds) > 20
    assert len(done.searched.versions) == 2
    assert 0 < done.killed_at < 150
    assert done.differing == {"promoted": [], "rolled back": []}
    assert done.batches >= 4
    assert done.caught_up["rollback"] >= 1
