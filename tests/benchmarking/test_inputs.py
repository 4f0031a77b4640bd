"""Sizes, the photo, shapes and the layers' true inputs."""

import pytest
import torch

from pvt_kernels.benchmarking import extras, photo, shapes, workloads


@pytest.mark.parametrize(
    ("original", "resized"),
    [
        ((427, 640), (800, 1199)),
        ((427, 569), (800, 1066)),
        ((384, 640), (800, 1333)),
        ((640, 427), (1199, 800)),
        ((480, 640), (800, 1067)),
        ((300, 1000), (400, 1333)),
    ],
)
def test_coco_rule(original, resized):
    assert photo.coco_size(*original) == resized


@pytest.mark.parametrize(("size", "crop"), photo.COCO_CROPS.items())
def test_coco_crops_lead_to_their_padded_size(size, crop):
    assert photo.padded_size(photo.coco_size(*crop)) == size


@pytest.mark.parametrize("size", [*photo.COCO_CROPS, (224, 224), (64, 320), (320, 64)])
def test_photo_has_the_size_asked_for(size):
    image = photo.photo(size)
    assert image.shape == (1, 3, *size)
    assert image.isfinite().all() and image.std() > 0.5


def test_photo_is_padded_with_zeros_on_the_right():
    image = photo.photo((800, 1216))
    assert (image[..., 1199:] == 0).all() and (image[..., 1198] != 0).any()


def test_batch_mirrors_every_other_image():
    batch = photo.photo_batch((64, 64), 3)
    assert torch.equal(batch[0], batch[2]) and torch.equal(batch[1], batch[0].flip(-1))


@pytest.mark.parametrize("text", ["800", "800x", "0x32", "800x1200", "axb", "32x32x32", "-32x32"])
def test_wrong_sizes_name_what_is_accepted(text):
    with pytest.raises(ValueError, match=r"size: given .* accepted HEIGHTxWIDTH in multiples"):
        shapes.parse_size(text)


def test_size_round_trip():
    assert shapes.format_size(shapes.parse_size("800X1216")) == "800x1216"


@pytest.mark.parametrize(
    ("stage", "queries", "keys"), [(1, 60800, 950), (2, 15200, 950), (3, 3800, 950), (4, 950, 950)]
)
def test_stage_shapes_at_800x1216(stage, queries, keys):
    shape = shapes.stage_shape(stage, (800, 1216))
    assert (shape.queries, shape.keys) == (queries, keys)
    assert shape.unreduced.keys == queries


def test_flops_of_the_first_stage():
    shape = shapes.stage_shape(1, (800, 1216), batch=2)
    # attention, q and output projections, k and v projections, convolution
    one = 4 * 60800 * 950 * 64 + 4 * 60800 * 64**2 + 4 * 950 * 64**2 + 2 * 950 * 64 * 64**2
    assert shape.flops(backward=False) == 2 * one
    assert shape.flops(backward=True) == 6 * one


def test_stage_inputs_are_those_of_the_seeded_model():
    first = workloads.stage_inputs((64, 96), 2)
    workloads.stage_inputs.cache_clear()
    again = workloads.stage_inputs((64, 96), 2)
    for stage, x in first.items():
        shape = shapes.stage_shape(stage, (64, 96), 2)
        assert x.shape == (2, shape.queries, shape.dim)
        assert torch.equal(x, again[stage])
        # blocks normalise before attention
        assert x.mean().abs() < 0.1 and 0.9 < x.std() < 1.1


def test_a_missing_package_says_how_to_install_it():
    with pytest.raises(ImportError, match=r"pip install pvt_kernels\[bench\]"):
        extras.require("no_such_package.part")


def test_a_missing_part_of_an_installed_package_is_not_blamed_on_the_extra():
    with pytest.raises(ModuleNotFoundError, match=r"json\.no_such_part"):
        extras.require("json.no_such_part")
