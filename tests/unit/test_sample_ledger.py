"""Every sample once: what is dealt out, what comes, what is missing when a generator is lost."""

import numpy as np
import pyarrow as pa
import pytest

from rlhf_ray.errors import InfrastructureError
from rlhf_ray.trainers.sample_ledger import SampleLedger, Share

pytestmark = pytest.mark.unit

Key = tuple[int, int]


def ledger(prompts: int = 10, samples: int = 3, chunk: int | None = None) -> SampleLedger:
    """Prompts 100, 110, 120, ..."""
    return SampleLedger(pa.table({"prompt_id": [100 + 10 * i for i in range(prompts)]}), samples, chunk)


def ids(share: Share) -> list[int]:
    return share.prompts["prompt_id"].to_pylist()


def keys(share: Share, samples: int = 3) -> list[Key]:
    """What a generator makes of a share."""
    names, wanted = ids(share), share.samples
    places = np.argwhere(np.ones((len(names), samples))) if wanted is None else wanted
    return [(names[row], index) for row, index in places.tolist()]


def meta(found: list[Key]) -> dict[str, np.ndarray]:
    prompt_id, sample_index = np.array(found).T
    return {"prompt_id": prompt_id, "sample_index": sample_index.astype(np.int32)}


def every(prompts: int = 10, samples: int = 3) -> list[Key]:
    return [(100 + 10 * i, j) for i in range(prompts) for j in range(samples)]


def test_shares_hold_every_sample_once_in_turns() -> None:
    shares = ledger().deal(3)
    assert [ids(share) for share in shares] == [[100, 130, 160, 190], [110, 140, 170], [120, 150, 180]]
    assert all(share.samples is None for share in shares), "whole prompts need no list"
    assert sorted(key for share in shares for key in keys(share)) == every()


def test_fewer_chunks_than_generators_make_fewer_shares() -> None:
    assert len(ledger(prompts=2).deal(5)) == 2
    assert [ids(share) for share in ledger(prompts=10, chunk=4).deal(2)] == [
        [100, 110, 120, 130, 180, 190],
        [140, 150, 160, 170],
    ]


def test_only_what_a_lost_generator_had_not_sent_is_asked_for_again() -> None:
    book = ledger()
    lost, other = book.deal(2)
    came = keys(lost)[:7]
    book.receive(lost.number, meta(came))
    again = book.missing(lost.number, 2)
    assert sorted(key for share in again for key in keys(share)) == sorted(set(keys(lost)) - set(came))
    partial = next(share for share in again if share.samples is not None)
    assert set(keys(partial)) & {(140, 1), (140, 2)} == {(140, 1), (140, 2)}, "the prompt that was half done"
    for share in (other, *again):
        book.receive(share.number, meta(keys(share)))
    book.check_complete()


def test_a_second_loss_asks_for_what_the_second_share_lacks() -> None:
    book = ledger()
    (lost,) = book.deal(1)
    book.receive(lost.number, meta(keys(lost)[:20]))
    (second,) = book.missing(lost.number, 1)
    book.receive(second.number, meta(keys(second)[:4]))
    (third,) = book.missing(second.number, 1)
    assert keys(third) == keys(lost)[24:]
    assert book.missing(lost.number, 1) == [], "nothing is the first share's any more"


def test_chunks_are_dealt_out_anew_as_a_whole_and_in_order() -> None:
    book = ledger(prompts=10, chunk=2)
    lost, _ = book.deal(2)
    assert ids(lost) == [100, 110, 140, 150, 180, 190]
    book.receive(lost.number, meta(keys(lost)[:6]))
    again = book.missing(lost.number, 2)
    assert [ids(share) for share in again] == [[140, 150], [180, 190]]
    assert all(share.samples is None for share in again)


def test_samples_that_are_gone_with_their_node_are_asked_for_again() -> None:
    book = ledger(prompts=4, samples=2)
    (share,) = book.deal(1)
    book.receive(share.number, meta(keys(share, 2)))
    (again,) = book.again(meta([(110, 1), (130, 0)]), 1)
    assert keys(again, 2) == [(110, 1), (130, 0)]
    with pytest.raises(InfrastructureError, match=r"samples .* \(110, 1\), \(130, 0\) never came"):
        book.check_complete()
    assert book.missing(share.number, 1) == [], "should the first generator be lost as well, they are under way"
    book.receive(again.number, meta(keys(again, 2)))
    book.check_complete()


def test_a_sample_that_comes_twice_is_refused_by_name() -> None:
    book = ledger()
    share, _ = book.deal(2)
    book.receive(share.number, meta([(100, 0), (120, 2)]))
    with pytest.raises(InfrastructureError, match=r"samples .* \(120, 2\) came twice"):
        book.receive(share.number, meta([(120, 2), (140, 0)]))


def test_a_sample_of_anothers_share_is_refused_by_name() -> None:
    book = ledger()
    share, _ = book.deal(2)
    with pytest.raises(InfrastructureError, match=r"\(110, 0\) came twice, or from a generator that was not asked"):
        book.receive(share.number, meta([(100, 0), (110, 0)]))


def test_what_never_came_is_named() -> None:
    book = ledger()
    share = book.deal(2)[0]
    book.receive(share.number, meta(keys(share)))
    with pytest.raises(InfrastructureError, match=r"samples .*\(110, 0\), .* and 10 others never came"):
        book.check_complete()
