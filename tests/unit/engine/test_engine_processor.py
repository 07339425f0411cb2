import platform

import pytest

from serve.engine.processor import multiplies_bfloat16

ZEN3 = "model name\t: AMD EPYC\nflags\t\t: fpu sse2 avx2 fma f16c vaes\n"
XEON = "flags\t\t: fpu avx2 avx512f avx512dq avx512bw avx512vl\nbugs\t\t: none\n"
GRAVITON = "processor\t: 0\nFeatures\t: fp asimd bf16\n"


@pytest.mark.parametrize(
    ("text", "able"), [(ZEN3, False), (XEON, True), (GRAVITON, True), ("", True), (None, True)]
)
def test_bfloat16_needs_avx512_on_x86(tmp_path, text, able):
    info = tmp_path / "cpuinfo"
    if text is not None:
        info.write_text(text)
    assert multiplies_bfloat16(info) == able


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only of x86 is anything known")
def test_torch_decides_alike():
    torch = pytest.importorskip("torch")
    assert multiplies_bfloat16() == torch.ops.mkldnn._is_mkldnn_bf16_supported()
