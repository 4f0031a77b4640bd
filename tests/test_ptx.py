"""The reader of PTX that `make aot` trusts, on kernels written by hand."""

import pytest

from .ptx import innermost_loops, instruction, multiply_adds

# a loop with a product on tensor cores and a loop around it, then one without
PTX = """
.visible .entry kernel()
{
	mov.b32 	%r7, 135266320;
$L__BB0_1:
	ld.global.b32 	%r1, [%rd1];
$L__BB0_2:                              // =>This Inner Loop Header
	// begin inline asm
{
	@!%p33 bra.uni skipWait;
	waitLoop:
	mbarrier.try_wait.parity.shared::cta.b64 complete, [%r130], %r282;
	@!complete bra.uni waitLoop;
	skipWait:
}
	@%p4 bra 	$L__BB0_2;
	PRODUCT
	@%p3 bra 	$L__BB0_2;
	@%p1 bra 	$L__BB0_1;
$L__BB0_3:
	fma.rn.f32 	%f1, %f2, %f3, %f1;
	@%p2 bra 	$L__BB0_3;
	@%p5 bra 	$L__BB0_4;
$L__BB0_4:
	mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 { %r1 }, { %r2 }, { %r3 }, { %r4 };
	ret;
}
"""


@pytest.mark.parametrize(
    ("product", "name", "macs"),
    [
        (
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 { %r1 }, { %r2 };",
            "mma.sync",
            8 * 16 * 8 * 16,
        ),
        (
            "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 { %r1 }, { %r2 };",
            "mma.sync",
            8 * 16 * 8 * 8,
        ),
        (
            "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {%r1}, %rd2, %rd3, %p1, 1, 1;",
            "wgmma.mma_async",
            2 * 64 * 32 * 16,
        ),
        # the descriptor in %r7: 128 x 64
        (
            "@%p20 tcgen05.mma.cta_group::1.kind::f16 [ %r351 + 0 ], %rd81, %rd82, %r7, %p21;",
            "tcgen05.mma",
            128 * 64 * 16,
        ),
    ],
)
def test_work_of_the_loops(product, name, macs):
    ptx = PTX.replace("PRODUCT", product)
    assert instruction(ptx) == name
    # the wait is no loop of the kernel's, and two ways back to one label are one loop
    inner, without = innermost_loops(ptx)
    assert multiply_adds(ptx, 8, inner) == macs
    # there are tensor-core instructions before and after, but not in this loop
    assert multiply_adds(ptx, 8, without) == 0
    assert multiply_adds(ptx, 8) == macs + 8 * 16 * 8 * 16


def test_a_kernel_without_tensor_cores():
    ptx = "\n".join(line for line in PTX.splitlines() if "mma.sync" not in line)
    assert instruction(ptx) == ""
    assert [multiply_adds(ptx, 4, lines) for lines in innermost_loops(ptx)] == [0, 0]


def test_an_unknown_instruction_is_no_zero():
    ptx = PTX.replace("PRODUCT", "tcgen05.mma.cta_group::2.kind::i8 [%r1], %rd1, %rd2, %r7, %p1;")
    with pytest.raises(ValueError, match=r"unknown shape: tcgen05\.mma"):
        multiply_adds(ptx, 4)
