"""The recipes: which parts they are made of."""

import pytest

from tfrs_negatives.encode.catalogue import ItemCatalogue
from tfrs_negatives.recipes import frequency_table, in_batch, mixed_negative_sampling
from tfrs_negatives.score.keep_masks import AccidentalHits

ITEMS = ItemCatalogue(list(range(3000)))


def test_sources():
    assert [source.name for source in in_batch(ITEMS).negatives] == ["in_batch"]
    sources = mixed_negative_sampling(ITEMS, num_uniform=7).negatives
    assert [source.name for source in sources] == ["in_batch", "uniform"]
    assert sources[1].num_negatives == 7


@pytest.mark.parametrize(
    ("correct", "masks"), [("both", []), ("negatives", [AccidentalHits]), (None, [AccidentalHits])]
)
def test_copies_of_the_positive_stay_only_where_it_is_corrected(correct, masks):
    for recipe in (in_batch, mixed_negative_sampling):
        assert [type(mask) for mask in recipe(ITEMS, correct=correct).masks] == masks


def test_options_win_over_the_recipe():
    task = in_batch(ITEMS, masks=[AccidentalHits()], temperature=0.3, similarity="dot")
    assert [type(mask) for mask in task.masks] == [AccidentalHits]
    assert (task.affinity.temperature, task.affinity.similarity) == (0.3, "dot")


def test_the_table_has_four_buckets_per_item():
    assert frequency_table(ITEMS).num_buckets == 12_000
    assert frequency_table(ItemCatalogue([1])).num_buckets == 1024
