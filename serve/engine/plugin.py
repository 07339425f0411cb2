"""What vLLM calls in each of its processes, by the entry points in ``vllm.general_plugins``."""

from serve.engine.forked_core import fork_the_core


def register() -> None:
    """Have vLLM compute LoRA on a CPU with our code; ``TENON_CPU_LORA=false`` turns it off."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        name = "serve.engine.cpu_punica.GroupedPunicaWrapper"
        type(current_platform).get_punica_wrapper = classmethod(lambda _: name)


def register_start() -> None:
    """Have vLLM start its engine core on a CPU by a fork, where that core has no workers."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        fork_the_core(type(current_platform))
