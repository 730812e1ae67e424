"""Ordered path rules: first match wins, nothing uncovered, no rule without effect."""

import numpy as np
import pytest

from pidiff_jax.optim.rules import ParameterRule, assign_groups, describe_parameters, merge, split

TREE = {
    "unet": {
        "attn2": {"to_k": {"kernel": np.zeros((2, 3))}, "to_k_id": {"kernel": np.ones((2, 3))}},
        "conv_in": {"kernel": np.zeros((3, 3, 1, 2)), "bias": np.zeros(2)},
    },
    "mapper": {"norm": {"scale": np.ones(4)}},
}


def test_the_first_matching_rule_wins():
    narrow, wide = ParameterRule(r"to_k_id/", "identity"), ParameterRule(r"attn2/", "attention")
    rest = ParameterRule(".*", "frozen")
    groups = assign_groups([narrow, wide, rest], TREE)
    assert groups["unet"]["attn2"] == {"to_k": {"kernel": "attention"}, "to_k_id": {"kernel": "identity"}}
    assert groups["mapper"]["norm"]["scale"] == "frozen"


def test_a_rule_hidden_by_an_earlier_one_is_an_error():
    rules = [
        ParameterRule(r"attn2/", "attention"),
        ParameterRule(r"to_k_id/", "identity"),
        ParameterRule(".*", "frozen"),
    ]
    with pytest.raises(ValueError, match=r"every rule to be the first match.*to_k_id"):
        assign_groups(rules, TREE)


def test_an_uncovered_parameter_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"a rule for every parameter, got none for mapper/norm/scale;"):
        assign_groups([ParameterRule("^unet/", "frozen")], TREE)


def test_a_pattern_that_is_no_regex_is_an_error():
    with pytest.raises(ValueError, match=r"regular expression, got '\*'"):
        assign_groups([ParameterRule("*", "frozen")], TREE)


def test_split_and_merge_are_inverse_and_share_the_leaves():
    groups = assign_groups([ParameterRule("to_k_id|^mapper", "identity"), ParameterRule(".*", "frozen")], TREE)
    trainable, frozen = split(TREE, groups)
    assert set(trainable) == {"unet", "mapper"}
    assert set(frozen["unet"]["attn2"]) == {"to_k"}
    merged = merge(trainable, frozen)
    assert merged["unet"]["conv_in"]["bias"] is TREE["unet"]["conv_in"]["bias"]
    assert set(merged["unet"]["attn2"]) == {"to_k", "to_k_id"}


def test_merging_a_path_twice_is_an_error():
    with pytest.raises(ValueError, match=r"without a path in common, got both with mapper/norm/scale"):
        merge(TREE, {"mapper": TREE["mapper"]})


def test_splitting_by_the_groups_of_another_tree_is_an_error():
    groups = assign_groups([ParameterRule(".*", "frozen")], {"mapper": TREE["mapper"]})
    with pytest.raises(ValueError, match=r"paths of its groups, got differences at unet/attn2/to_k/kernel"):
        split(TREE, groups)


def test_the_table_counts_the_parameters_of_every_group():
    groups = assign_groups([ParameterRule("to_k_id", "identity"), ParameterRule(".*", "frozen")], TREE)
    lines = describe_parameters(groups, TREE).splitlines()
    assert lines[2].split() == ["identity", "1", "6", "unet/attn2/to_k_id/kernel"]
    assert lines[3].split()[:3] == ["frozen", "4", "30"]
