from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli.report import Clock, progress
from pipeline.schemas import Progress


@given(st.lists(st.tuples(st.floats(0.01, 100), st.integers(0, 50)), min_size=1, max_size=50))
def test_the_remaining_time_never_grows(steps):
    clock = Clock(0.0, 10)
    now, done, last = 0.0, 10, None
    total = 10 + sum(more for _, more in steps)
    for seconds, more in steps:
        now, done = now + seconds, done + more
        left = clock.left(now, done, total)
        if left is not None:
            assert left >= 0
            assert last is None or left <= last
            last = left


def test_documents_of_earlier_attempts_do_not_count_into_the_rate():
    clock = Clock(0.0, 1000)
    assert clock.rate(10.0, 1050) == 5.0
    assert clock.left(10.0, 1050, 1100) == 10.0


def test_every_stage_says_how_far_it_is_where_that_is_known(capsys):
    with progress() as observe:
        observe(Progress("exporting the model"))
        observe(Progress("embedding", 3, 40))
    said = capsys.readouterr().err
    assert "exporting the model …" in said
    assert "embedding: 3 of 40 …" in said
