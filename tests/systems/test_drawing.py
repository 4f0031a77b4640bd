"""What is drawn on images."""

import numpy as np
from PIL import Image

from pvt_kernels.systems.drawing import MIN_WIDTH, draw_objects


def changed(picture, other):
    return (np.asarray(picture) != np.asarray(other)).any(-1)


def test_objects_have_boxes_masks_and_names():
    image = Image.new("RGB", (400, 300), "gray")
    masks = np.zeros((1, 300, 400), bool)
    masks[0, 120:160, 150:250] = True
    arguments = ([(100, 100, 300, 200)], [1], [0.75], ["cat", "dog"])
    plain, masked = draw_objects(image, *arguments), draw_objects(image, *arguments, masks)
    assert plain.size == image.size
    drawn = changed(plain, image)
    assert drawn[100, 100:301].all() and drawn[100:201, 300].all()  # the box
    assert drawn[85:99, 105:140].all()  # its name, above it
    assert not drawn[110:190, 110:290].any() and not drawn[210:].any()
    assert np.array_equal(changed(plain, masked), masks[0])
    # another class, another colour
    other = draw_objects(image, [(100, 100, 300, 200)], [0], [0.75], ["cat", "dog"])
    assert changed(plain, other)[100, 100:301].all()


def test_a_small_image_is_enlarged_with_its_objects():
    image = Image.new("RGB", (80, 60))
    masks = np.ones((1, 60, 80), bool)
    picture = draw_objects(image, [(20, 20, 60, 40)], [0], [1.0], ["cat"], masks)
    assert picture.size == (MIN_WIDTH, 240)
    black = Image.new("RGB", picture.size)
    assert changed(picture, black)[100:140].all()  # below the name
    assert not changed(draw_objects(image, [], [], [], ["cat"], masks[:0]), black).any()
