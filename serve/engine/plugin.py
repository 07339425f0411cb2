"""What vLLM calls in each of its processes, by the entry point ``vllm.general_plugins``."""


def register() -> None:
    """Have vLLM compute LoRA on a CPU with our code; ``TENON_CPU_LORA=false`` turns it off."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        name = "serve.engine.cpu_punica.GroupedPunicaWrapper"
        type(current_platform).get_punica_wrapper = classmethod(lambda _: name)
