"""What holds for every variant: parameter names and counts, cost, maps, errors, checkpoints."""

import copy
import pickle

import pytest
import torch

from pvt_kernels import models

PUBLISHED = {  # millions of parameters and GFLOPs at 224 x 224, from the papers
    "pvt_tiny": (13.2, 1.9),
    "pvt_small": (24.5, 3.8),
    "pvt_medium": (44.2, 6.7),
    "pvt_large": (61.4, 9.8),
    "pvt_v2_b0": (3.7, 0.6),
    "pvt_v2_b1": (14.0, 2.1),
    "pvt_v2_b2": (25.4, 4.0),
    "pvt_v2_b2_linear": (22.6, 3.9),
    "pvt_v2_b3": (45.2, 6.9),
    "pvt_v2_b4": (62.6, 10.1),
    "pvt_v2_b5": (82.0, 11.8),
}
WIDTHS = {"pvt_huge": (128, 256, 512, 768), "pvt_v2_b0": (32, 64, 160, 256)}
DEPTHS = {
    "pvt_tiny": (2, 2, 2, 2),
    "pvt_small": (3, 4, 6, 3),
    "pvt_medium": (3, 4, 18, 3),
    "pvt_large": (3, 8, 27, 3),
    "pvt_huge": (3, 10, 60, 3),
    "pvt_v2_b0": (2, 2, 2, 2),
    "pvt_v2_b1": (2, 2, 2, 2),
    "pvt_v2_b2": (3, 4, 6, 3),
    "pvt_v2_b2_linear": (3, 4, 6, 3),
    "pvt_v2_b3": (3, 4, 18, 3),
    "pvt_v2_b4": (3, 8, 27, 3),
    "pvt_v2_b5": (3, 6, 40, 3),
}
SR_RATIOS = (8, 4, 2, 1)
MLP_RATIOS = {"pvt_v2_b5": (4, 4, 4, 4)}
SMALL = ("pvt_tiny", "pvt_v2_b0")
# one of each kind; v2_b2_linear is the smallest with linear SRA
KINDS = ("pvt_tiny", "pvt_v2_b0", "pvt_v2_b2_linear")


def widths(name):
    return WIDTHS.get(name, (64, 128, 320, 512))


def create_on_meta(name, **kwargs):
    with torch.device("meta"):
        return models.create(name, **kwargs)


def weight_and_bias(*names):
    return {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}


def original_keys(name):
    """The state_dict keys of the original code's classifier."""
    v2, linear = "_v2_" in name, name.endswith("linear")
    keys = weight_and_bias("head")
    if not v2:
        keys |= weight_and_bias("norm") | {"cls_token"}
    for stage in range(1, 5):
        keys |= weight_and_bias(f"patch_embed{stage}.proj", f"patch_embed{stage}.norm")
        keys |= weight_and_bias(f"norm{stage}") if v2 else {f"pos_embed{stage}"}
        for j in range(DEPTHS[name][stage - 1]):
            layers = ["norm1", "attn.q", "attn.kv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]
            if linear or stage < 4:
                layers += ["attn.sr", "attn.norm"]
            if v2:
                layers += ["mlp.dwconv.dwconv"]
            keys |= weight_and_bias(*(f"block{stage}.{j}.{layer}" for layer in layers))
    return keys


def test_names_lists_every_variant():
    assert models.names() == [*DEPTHS, "pvt_small_full_attention", "pvt_small_columnar"]
    assert all(name in models.__all__ for name in models.names())


def test_create_rejects_an_unknown_name():
    with pytest.raises(ValueError, match=r"name must be one of pvt_tiny, .*got 'pvt_giant'"):
        models.create("pvt_giant")


@pytest.mark.parametrize("name", DEPTHS)
def test_state_dict_keys_are_the_originals(name):
    assert set(create_on_meta(name).state_dict()) == original_keys(name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_size_and_cost_match_the_papers(name):
    model = create_on_meta(name)
    parameters, gflops = PUBLISHED[name]
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(parameters, abs=0.05)
    # the authors' tool also counts norms, activations and biases: up to 1% more
    assert models.count_flops(model) / 1e9 == pytest.approx(gflops, abs=0.05, rel=0.01)


# every variant on a map with rows and columns left over, and each kind on whole ones
@pytest.mark.parametrize(
    ("name", "size"),
    [*((name, (100, 260)) for name in DEPTHS), *((name, (224, 224)) for name in KINDS)],
)
def test_count_flops_matches_a_count_by_hand(name, size):
    v2, linear = "_v2_" in name, name.endswith("linear")
    total, in_chans = 0, 3
    H, W = size
    for stage, (C, depth, R) in enumerate(zip(widths(name), DEPTHS[name], SR_RATIOS, strict=True)):
        stride = 4 if stage == 0 else 2
        kernel = (7 if stage == 0 else 3) if v2 else stride
        H, W = (-(-H // stride), -(-W // stride)) if v2 else (H // stride, W // stride)
        total += H * W * C * in_chans * kernel**2
        N = H * W + (not v2 and stage == 3)
        M = 49 if linear else (H // R) * (W // R) if R > 1 else N
        window = 1 if linear else R
        hidden = C * MLP_RATIOS.get(name, (8, 8, 4, 4))[stage]
        block = 2 * N * C * C + 2 * M * C * C + 2 * N * M * C + 2 * N * C * hidden
        if linear or R > 1:
            block += M * window**2 * C * C
        if v2:
            block += N * hidden * 9
        total += depth * block
        in_chans = C
    total += in_chans * 1000
    assert models.count_flops(create_on_meta(name), size) == total


def test_count_flops_leaves_the_model_as_it_was():
    model = models.pvt_v2_b0(drop_path_rate=0.1, attn_drop_rate=0.1)
    model.block1.eval()
    before = copy.deepcopy(model.state_dict())
    assert models.count_flops(model) == models.count_flops(model.half())
    assert model.training
    assert model.block4.training
    assert not model.block1.training
    assert all(torch.equal(value.half(), model.state_dict()[key]) for key, value in before.items())


@pytest.mark.parametrize(
    ("name", "size"),
    [*((name, (224, 224)) for name in DEPTHS), *((name, (800, 1216)) for name in KINDS)],
)
def test_pyramid_has_strides_4_to_32(name, size):
    model = create_on_meta(name, features_only=True)
    maps = model(torch.empty(2, 3, *size, device="meta"))
    assert [tuple(m.shape) for m in maps] == [
        (2, channels, size[0] // stride, size[1] // stride)
        for channels, stride in zip(widths(name), (4, 8, 16, 32), strict=True)
    ]
    assert model.embed_dims == widths(name)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("pvt_tiny", [(17, 24), (8, 12), (4, 6), (2, 3)]),  # incomplete patches left out
        ("pvt_v2_b0", [(18, 25), (9, 13), (5, 7), (3, 4)]),  # padded
        ("pvt_v2_b2_linear", [(18, 25), (9, 13), (5, 7), (3, 4)]),
    ],
)
def test_pyramid_of_odd_sizes(name, sizes):
    maps = models.create(name, features_only=True)(torch.randn(1, 3, 71, 99))
    assert [tuple(m.shape[2:]) for m in maps] == sizes
    assert all(m.is_contiguous() and m.isfinite().all() for m in maps)


@pytest.mark.parametrize("name", KINDS)
def test_pyramid_loads_a_classifiers_checkpoint(name):
    checkpoint = models.create(name).state_dict()
    keys = set(checkpoint)
    model = models.create(name, features_only=True)
    model.load_state_dict(checkpoint, strict=True)
    assert set(checkpoint) == keys
    own = {"head.weight", "head.bias"}
    if name == "pvt_tiny":
        own |= {"norm.weight", "norm.bias", "cls_token"}
    assert keys - set(model.state_dict()) == own
    assert all(torch.equal(value, checkpoint[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("key", ["neck.weight", "norm5.weight", "block1.0.cls_token", "header"])
def test_pyramid_drops_nothing_else(name, key):
    checkpoint = create_on_meta(name).state_dict()
    checkpoint[key] = torch.empty(1, device="meta")
    with pytest.raises(RuntimeError, match=rf"Unexpected key\(s\) in state_dict: \"{key}\""):
        create_on_meta(name, features_only=True).load_state_dict(checkpoint)


@pytest.mark.parametrize("name", SMALL)
def test_pyramid_inside_a_detector_loads_a_classifiers_checkpoint(name):
    detector = torch.nn.ModuleDict({"backbone": models.create(name, features_only=True)})
    classifier = models.create(name)
    detector.load_state_dict({f"backbone.{k}": v for k, v in classifier.state_dict().items()})
    assert torch.equal(
        detector["backbone"].block4[1].mlp.fc2.weight, classifier.block4[1].mlp.fc2.weight
    )


def test_checkpoint_of_another_number_of_classes_is_refused():
    checkpoint = create_on_meta("pvt_v2_b0").state_dict()
    with pytest.raises(RuntimeError, match=r"size mismatch for head.weight"):
        create_on_meta("pvt_v2_b0", num_classes=10).load_state_dict(checkpoint)


@pytest.mark.parametrize(
    ("name", "size"), [("pvt_tiny", 32), ("pvt_v2_b0", 29), ("pvt_v2_b2_linear", 1)]
)
def test_smallest_image(name, size):
    model = models.create(name, num_classes=5).eval()
    assert model(torch.randn(1, 3, size, size)).isfinite().all()
    message = rf"x: images must be at least {size} x {size}, got {size - 1} x {size + 9}"
    with pytest.raises(ValueError, match=message):
        model(torch.randn(1, 3, size - 1, size + 9))


@pytest.mark.parametrize("name", SMALL)
def test_images_must_be_batched(name):
    with pytest.raises(ValueError, match=r"x must be a batch of images .*got shape \(3, 64, 64\)"):
        models.create(name)(torch.randn(3, 64, 64))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_classes": -1}, "num_classes must be 0 .*got -1"),
        ({"drop_rate": 1.0}, "drop_rate must be at least 0 and below 1, got 1.0"),
        ({"attn_drop_rate": -0.1}, "attn_drop_rate must be .*got -0.1"),
        ({"drop_path_rate": 1.5}, "drop_path_rate must be .*got 1.5"),
    ],
)
def test_arguments_out_of_range(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        create_on_meta(name, **kwargs)


@pytest.mark.parametrize("name", SMALL)
def test_classifier_can_be_replaced(name):
    model = models.create(name, in_chans=4).double()
    x = torch.randn(2, 4, 32, 32, dtype=torch.float64)
    features = model.forward_head(model.forward_features(x), pre_logits=True)
    assert model(x).shape == (2, 1000)
    assert model.get_classifier() is model.head

    model.reset_classifier(7)
    assert model(x).shape == (2, 7)
    assert model.num_classes == 7

    model.reset_classifier(0)
    assert torch.equal(model(x), features)
    assert features.shape == (2, model.num_features)
    assert torch.equal(models.create(name, num_classes=0).double().head(features), features)
    with pytest.raises(ValueError, match=r"num_classes must be 0 .*got -2"):
        model.reset_classifier(-2)


@pytest.mark.parametrize("name", SMALL)
def test_pyramid_has_no_classifier(name):
    model = create_on_meta(name, features_only=True)
    assert model.num_classes == 0
    with pytest.raises(AttributeError, match="head"):
        model.get_classifier()
    with pytest.raises(ValueError, match="features_only=True has no classifier"):
        model.reset_classifier(10)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("features_only", [False, True])
def test_gradients_reach_every_parameter(name, features_only):
    torch.manual_seed(0)
    model = models.create(name, features_only=features_only, drop_rate=0.1)
    out = model(torch.randn(2, 3, 64, 96))
    outputs = out if features_only else [out]
    # a plain sum would vanish in the backward of a final LayerNorm
    sum((output * torch.randn_like(output)).sum() for output in outputs).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.any(), parameter_name
    if name == "pvt_tiny" and features_only:
        assert not model.pos_embed4.grad[:, 0].any()


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_compute_the_same(name, duplicate):
    model = models.create(name).eval()
    twin = duplicate(model)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(x), twin(x))
    assert twin.head.weight.data_ptr() != model.head.weight.data_ptr()


@pytest.mark.parametrize(
    ("name", "features_only"),
    [
        ("pvt_tiny", False),
        ("pvt_v2_b0", True),
        pytest.param("pvt_tiny", True, marks=pytest.mark.nightly),
        pytest.param("pvt_v2_b0", False, marks=pytest.mark.nightly),
    ],
)
def test_compiles_without_graph_breaks(name, features_only):
    torch._dynamo.reset()
    model = models.create(name, features_only=features_only, drop_path_rate=0.1).eval()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)
    x = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(compiled(x), model(x))


def test_training_compiles_without_graph_breaks():
    torch._dynamo.reset()
    model = models.pvt_v2_b0(drop_path_rate=0.1)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)
    compiled(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
