"""Recipes: their fields, replaced and checked."""

import pytest

from pvt_kernels import models, systems
from pvt_kernels.systems.training import recipe
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
LARGE = recipe.override(POLY, {"model": "pvt_large"})


def test_override_parses_by_type():
    changed = recipe.override(
        POLY, {"learning_rate": "2e-4", "weight_decay": "0", "clip_norm": "1", "model": "pvt_tiny"}
    )
    assert (changed.learning_rate, changed.weight_decay, changed.clip_norm) == (2e-4, 0.0, 1.0)
    assert changed.model == "pvt_tiny" and changed.batch_size == 16
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
        ({"lr": "1"}, r"recipe poly has no setting 'lr', accepted model, batch_size"),
        ({"schedule": "1"}, r"no setting 'schedule'"),
        ({"batch_size": "2.5"}, r"batch_size: given '2.5', accepted int"),
        ({"clip_norm": "high"}, r"clip_norm: given 'high', accepted float or None"),
        ({"batch_size": "0"}, r"batch_size must be positive, got 0"),
        ({"epochs": "None"}, r"one of epochs and iterations must be given, got None and None"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        recipe.override(POLY, settings)


def test_find_by_name_else_by_model():
    other = recipe.Recipe(**{**vars(LARGE), "name": "other", "models": ()})
    assert recipe.find([POLY, other], None, None) is POLY
    assert recipe.find([POLY, other], None, "pvt_large") is other
    assert recipe.find([POLY, other], "poly", "pvt_large") is POLY
    with pytest.raises(ValueError, match="recipe: given 'none', accepted poly, other"):
        recipe.find([POLY, other], "none", None)


@pytest.mark.parametrize("system", systems.NAMES)
@pytest.mark.parametrize("model", models.names())
def test_every_system_has_a_default_recipe_for_every_model(system, model):
    found = recipe.find(systems.load(system).recipes, None, model)
    assert found.name != "shapes"
