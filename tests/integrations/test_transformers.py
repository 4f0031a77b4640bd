"""transformers' models, patched; `make test-old-transformers` runs this file on version 4."""

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import pvt_kernels
from pvt_kernels.integrations import transformers_segformer_head

from .checks import assert_patch_keeps_results, output, patched_names, with_lively_weights

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

VERSION_4 = transformers.__version__.startswith("4.")
# as in version 4 and the first of version 5
OLDER_SEGFORMER = not hasattr(
    transformers.SegformerModel(transformers.SegformerConfig(depths=[1] * 4)), "stages"
)
B0 = {"num_labels": 10}
B2 = {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 4, 6, 3], "decoder_hidden_size": 768}


def segformer(**config):
    return transformers.SegformerForSemanticSegmentation(
        transformers.SegformerConfig(**{**B0, **config})
    )


def pvt(size=(72, 88)):
    """Pvt-tiny, the default, with position embeddings of a size that is not square."""
    model = transformers.PvtModel(transformers.PvtConfig(image_size=224))
    for stage, embeddings in enumerate(model.encoder.patch_embeddings):
        tokens = (size[0] // (4 << stage)) * (size[1] // (4 << stage))
        tokens += embeddings.cls_token is not None
        channels = embeddings.position_embeddings.shape[-1]
        embeddings.position_embeddings = nn.Parameter(torch.randn(1, tokens, channels))
    return model


def pvt_v2(**config):
    return transformers.PvtV2Model(transformers.PvtV2Config(**config))


def glpn():
    return transformers.GLPNForDepthEstimation(transformers.GLPNConfig())


# what makes the model, its input's height and width, and how many modules are swapped and skipped:
# the networks of linear SRA, whose ReLU these tests replace
MODELS = {
    "segformer_b0": (segformer, (64, 68), 16 + 1, 0),
    "segformer_b2": (lambda: segformer(**B2), (68, 64), 32 + 1, 0),
    "pvt_tiny": (pvt, (72, 88), 8 + 8, 0),
    "pvt_v2_b0": (pvt_v2, (64, 68), 16, 0),
    "pvt_v2_linear": (lambda: pvt_v2(linear_attention=True), (64, 68), 8, 8),
    "glpn": (glpn, (64, 96), 16, 0),
}
# one attention a stage: enough where the results are not what is tested
SMALL = {"depths": [1, 1, 1, 1]}


@pytest.mark.parametrize(
    ("dtype", "batch", "training"),
    [(torch.float32, 2, True), (torch.bfloat16, 1, False)],
    ids=["fp32", "bf16"],
)
@pytest.mark.parametrize("name", MODELS)
def test_results(name, dtype, batch, training):
    make, size, swapped, skipped = MODELS[name]
    torch.manual_seed(0)
    model = with_lively_weights(make()).to(dtype).train(training)
    x = torch.randn(batch, 3, *size).to(dtype)
    assert_patch_keeps_results(model, x, swapped, skipped)


def test_both_arrangements_of_segformer_are_known():
    report = pvt_kernels.patch(segformer(**SMALL), dry_run=True)
    older = OLDER_SEGFORMER
    attention = "transformers PVT, GLPN, SegFormer" if older else "transformers SegFormer"
    network = "transformers feed-forward" if older else "feed-forward"
    families = [row.family for row in report.rows]
    assert families == [attention, network] * 4 + ["transformers SegFormer head"]


@pytest.mark.parametrize("core", ["eager", "sdpa"])
@pytest.mark.skipif(VERSION_4, reason="transformers 4 has one core for SegFormer's attention")
def test_every_core_of_segformer_is_replaced(core):
    model = segformer(**SMALL).eval()
    model.set_attn_implementation(core)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(x).logits
        with pvt_kernels.patch(model) as report:
            torch.testing.assert_close(model(x).logits, expected)
    assert len(report.swapped) == 9


@pytest.mark.skipif(OLDER_SEGFORMER, reason="SegFormer's older attention has one core")
def test_a_core_of_somebody_elses_is_left_alone():
    model = segformer(**SMALL)
    for module in model.modules():
        if hasattr(module, "q_proj"):
            module.config._attn_implementation = "mine"
    report = pvt_kernels.patch(model)
    assert not any(name.endswith("attention") for name in report.swapped)
    assert len(report.skipped) == 4
    assert all("attn_implementation is 'mine'" in why for why in report.skipped.values())


@pytest.mark.parametrize("make", [segformer, pvt_v2, glpn], ids=lambda f: f.__name__)
def test_output_attentions_runs_the_modules_own_forward(make):
    model = make().eval()
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation("eager")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(x, output_attentions=True)
        pvt_kernels.patch(model)
        actual = model(x, output_attentions=True)
    # PvtV2 has a tuple for each stage
    weights = [tree_leaves(result.attentions) for result in (actual, expected)]
    assert len(weights[0]) == 8
    # of the networks before an attention, which are swapped too, the last bits may differ
    torch.testing.assert_close(*weights)
    torch.testing.assert_close(output(actual), output(expected))


@pytest.mark.skipif(OLDER_SEGFORMER, reason="SegFormer's older attention has no mask")
def test_an_attention_mask_runs_the_modules_own_forward():
    model = segformer(**SMALL).eval()
    attention = model.segformer.stages[0].blocks[0].attention
    x, mask = torch.randn(1, 64, 32), torch.zeros(1, 1, 64, 1)
    mask[..., ::2, :] = -1e4
    expected = attention(x, 8, 8, attention_mask=mask)[0]
    pvt_kernels.patch(model)
    assert torch.equal(attention(x, 8, 8, attention_mask=mask)[0], expected)


def test_attention_dropout_runs_the_modules_own_forward_in_training():
    model = segformer(attention_probs_dropout_prob=0.3, **SMALL)
    head, x = model.decode_head, torch.randn(2, 3, 64, 64)

    def outputs(training):
        torch.manual_seed(0)
        return model.train(training).segformer(x).last_hidden_state

    expected = {training: outputs(training) for training in (True, False)}
    report = pvt_kernels.patch(model)
    assert len(report.swapped) == 9
    assert "attention dropout 0.3, training runs its own" in report.rows[0].reason
    # the same weights are dropped
    torch.testing.assert_close(outputs(True), expected[True])
    assert not torch.equal(outputs(False), expected[False])
    torch.testing.assert_close(outputs(False), expected[False])
    assert head.training is False


@pytest.mark.parametrize("band", [1, 100, 10**6])
@pytest.mark.parametrize("size", [(64, 96), (96, 64), (100, 80)])
def test_segformers_head_by_bands(size, band, monkeypatch):
    monkeypatch.setattr(transformers_segformer_head, "BAND", band)
    model = with_lively_weights(segformer(**SMALL)).eval()
    x = torch.randn(2, 3, *size)
    calls = []
    with torch.no_grad():
        expected = model(x).logits
        pvt_kernels.patch(model)
        monkeypatch.setattr(
            transformers_segformer_head,
            "_upsampled_rows",
            lambda *a, call=transformers_segformer_head._upsampled_rows: (
                calls.append(a) or call(*a)
            ),
        )
        actual = model(x).logits
    torch.testing.assert_close(actual, expected)
    assert actual.is_contiguous()
    # 100 is no multiple of what the maps are of
    assert bool(calls) == (size[0] != 100)
    # with gradients the maps are there as a whole
    count = len(calls)
    torch.testing.assert_close(model(x).logits, expected)
    assert len(calls) == count


@pytest.mark.parametrize("part", ["batch_norm", "activation", "dropout", "classifier"])
def test_who_listens_behind_segformers_sums_hears_one_call(part):
    model = segformer(**SMALL).eval()
    pvt_kernels.patch(model)
    heard = []
    getattr(model.decode_head, part).register_forward_hook(lambda m, i, o: heard.append(o.shape))
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 64))
    (shape,) = heard
    assert shape[2:] == (16, 16)


def test_hooks_inside_still_fire():
    model = segformer(**SMALL).eval()
    x = torch.randn(1, 3, 64, 64)
    pvt_kernels.patch(model)
    expected = model(x).logits
    seen = []
    listened = [
        module
        for name, module in model.named_modules()
        if name.endswith((".attention", ".key", ".k_proj", ".sr", ".sequence_reduction", "fuse"))
    ]
    for module in listened:
        module.register_forward_hook(lambda m, i, o: seen.append(m))
    torch.testing.assert_close(model(x).logits, expected)
    assert {id(m) for m in seen} == {id(m) for m in listened}


def test_a_family_in_use_elsewhere_is_not_touched():
    """BERT's attention has a query, a key and a value too."""
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    model = transformers.BertModel(config)
    with pytest.warns(UserWarning, match="BertModel has no spatial-reduction attention"):
        report = pvt_kernels.patch(model)
    assert not report.rows
    assert str(report) == "no spatial-reduction attention found"
    assert not patched_names(model)
