"""AG-VAS inside vLLM, which finds ``register`` by its entry point (group ``vllm.general_plugins``).

Written for one release of vLLM (``agvas_core.contract.lmm_folder.VLLM_VERSION``), whose inner interfaces change with each. Only
``model``, ``pooler``, ``connector`` and ``engine`` import it, and nothing imports those before vLLM is asked for.
"""

__all__ = ["register"]

ARCHITECTURE = "AgvasForConditionalGeneration"


def register() -> None:
    """Tells vLLM our model class, by name: vLLM calls this in each of its processes, and imports the class where it builds the model."""
    from vllm import ModelRegistry

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"{__name__}.model:{ARCHITECTURE}")
