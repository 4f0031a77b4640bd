"""Recipes: their fields, replaced and checked."""

import dataclasses
from dataclasses import replace

import pytest

from pvt_kernels import models, systems
from pvt_kernels.systems import classification, detr
from pvt_kernels.systems.training import fields, recipe
from pvt_kernels.systems.training.schedules import Poly

POLY = recipe.Recipe(
    name="poly",
    summary="",
    batch_size=16,
    micro_batch=2,
    iterations=80_000,
    learning_rate=1e-4,
    weight_decay=1e-4,
    schedule=Poly(),
    models=("pvt_small",),
)


def test_override_parses_by_type():
    changed = recipe.override(
        POLY, {"learning_rate": "2e-4", "weight_decay": "0", "clip_norm": "1"}
    )
    assert (changed.learning_rate, changed.weight_decay, changed.clip_norm) == (2e-4, 0.0, 1.0)
    assert type(changed.weight_decay) is float and changed.batch_size == 16
    assert recipe.override(changed, {"clip_norm": "None"}).clip_norm is None


def test_a_length_in_epochs_replaces_one_in_iterations():
    changed = recipe.override(POLY, {"epochs": "3", "evaluate_every": "2"})
    assert changed.iterations is None and changed.total_steps(7) == 21
    assert changed.evaluation_steps(7) == 14
    assert recipe.override(POLY, {"epochs": "3"}).evaluation_steps(7) == 21
    assert recipe.override(changed, {"epochs": "9", "iterations": "5"}).total_steps(7) == 5
    assert POLY.total_steps(7) == 80_000 and POLY.evaluation_steps(7) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": "1"}, r"^lr: recipe poly has no such field, accepted batch_size, micro_batch"),
        ({"schedule": "1"}, r"schedule: recipe poly has no such field"),
        ({"model": "pvt_tiny"}, r"model: recipe poly has no such field"),
        ({"batch_size": "2.5"}, r"^batch_size: given '2.5', accepted a whole number of at least 1"),
        ({"batch_size": "True"}, r"batch_size: given 'True'"),
        ({"clip_norm": "high"}, r"clip_norm: given 'high', accepted None or a number above 0"),
        ({"learning_rate": "1e999"}, r"learning_rate: given '1e999'"),
        ({"epochs": "None"}, r"^epochs: given 'None', accepted a whole number of at least 1"),
        ({"iterations": "2", "epochs": "None"}, r"^epochs: given 'None', accepted a whole"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        recipe.override(POLY, settings)


def test_a_recipe_is_checked_where_it_is_declared():
    with pytest.raises(ValueError, match="batch_size: given 0, accepted a whole number"):
        replace(POLY, batch_size=0)
    with pytest.raises(ValueError, match="accepted one of epochs and iterations, given 3 and 80"):
        replace(POLY, epochs=3)


# of each kind of field, what it takes beside the recipes' own values, and what it does not
KINDS = {
    fields.Count: (["1"], ["0", "-5", "1.5", "x"]),
    fields.Side: (["32", "225"], ["-5", "0", "31", "(32, 32)"]),
    fields.Positive: (["1", "1e-9"], ["0", "-1", "1e999", "None"]),
    fields.NotNegative: (["0", "0.5"], ["-1", "1e999", "nan"]),
    fields.Probability: (["0", "1"], ["-0.1", "1.1"]),
    fields.Dropout: (["0", "0.9"], ["1", "-0.1"]),
    fields.Part: (["0.01", "1"], ["0", "1.01"]),
    fields.Switch: (["True", "False"], ["1", "yes"]),
    fields.Lengths: (["640", "640,800"], ["()", "0,800", "-5", "'a',"]),
    fields.Range: (["1,2", "0.5,0.5"], ["2,1", "1", "1,2,3", "-1,2"]),
    classification.Policy: (["rand-m9", "original"], ["paper", "rand-x5"]),
    detr.Width: (["8", "256"], ["0", "100", "-8"]),
}
KINDS = {kind.__metadata__[0]: values for kind, values in KINDS.items()}


@pytest.mark.parametrize("system", systems.NAMES)
def test_every_field_of_every_recipe_is_checked(system):
    chosen = systems.load(system).recipes[0]
    checked = recipe.fields(type(chosen))
    names = {field.name for field in dataclasses.fields(chosen)}
    assert names - set(checked) == {"name", "summary", "model", "models", "schedule"}
    for name, field in checked.items():
        takes, refuses = KINDS[field.kind]
        for text in takes:
            recipe.override(chosen, {name: text})
        for text in refuses if not field.optional else set(refuses) - {"None"}:
            with pytest.raises(ValueError) as raised:
                recipe.override(chosen, {name: text})
            assert str(raised.value) == f"{name}: given {text!r}, accepted {field.words}"
        if field.optional:
            assert getattr(recipe.override(chosen, {name: "None"}), name) is None


def test_find_by_name_else_by_model():
    other = recipe.Recipe(**{**vars(POLY), "name": "other", "models": ()})
    assert recipe.find([POLY, other], None, None) is POLY
    assert recipe.find([POLY, other], None, "pvt_large") is other
    assert recipe.find([POLY, other], "poly", "pvt_large") is POLY
    with pytest.raises(ValueError, match="recipe: given 'none', accepted poly, other"):
        recipe.find([POLY, other], "none", None)


@pytest.mark.parametrize("system", systems.NAMES)
def test_a_system_has_a_default_recipe_for_every_model(system):
    recipes = systems.load(system).recipes
    found = {model: recipe.find(recipes, None, model).name for model in models.names()}
    assert "shapes" not in found.values()
