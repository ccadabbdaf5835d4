"""The language model as vLLM runs it: f_s and f_align come in as the embeddings of one image, post-norm states go out (paper eq. 3).

Vision is outside, so a folder of ``agvas-export vllm`` holds no tower and this class builds none. The language model itself is vLLM's own
(Qwen2 or LLaMA, as ``text_config`` says).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.pooler.abstract import Pooler
from vllm.model_executor.layers.pooler.common import PoolingParamsUpdate
from vllm.model_executor.layers.pooler.special import DispatchPooler
from vllm.model_executor.models.interfaces import SupportsEagle3, SupportsLoRA, SupportsMultiModal, SupportsPP
from vllm.model_executor.models.module_mapping import MultiModelKeys
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper, init_vllm_registered_model, maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import EmbeddingItems, ImageEmbeddingItems
from vllm.multimodal.processing import BaseDummyInputsBuilder, BaseMultiModalProcessor, BaseProcessingInfo, PromptReplacement

__all__ = ["ROWS", "AgvasForConditionalGeneration", "AnchorPooler"]


# Which states leave vLLM in direct mode: those that were asked for, and no others.


ROWS = "agvas_rows"
"""Key of ``PoolingParams.extra_kwargs``: positions within the prompt, ascending."""


class AnchorPooler(Pooler):
    """Rows of the post-norm states, float32, in the order of the prompt; safe where the prompt is prefilled in chunks.

    Rows are those that the request names; where it names none, those of the anchor tokens.
    """

    def __init__(self, anchor_ids: Sequence[int]) -> None:
        super().__init__()
        self.anchor_ids = torch.tensor(sorted(set(anchor_ids)))

    def get_supported_tasks(self) -> set[str]:
        return {"token_embed"}

    def get_pooling_updates(self, task: str) -> PoolingParamsUpdate:
        return PoolingParamsUpdate(requires_token_ids=True)

    def forward(self, hidden_states: Tensor, pooling_metadata: Any) -> list[Tensor | None]:
        """States [tokens, D] of the chunks of all requests -> rows of each request that is finished."""
        cursor = pooling_metadata.get_pooling_cursor()
        lengths: list[int] = cursor.num_scheduled_tokens_cpu.tolist()
        requests = zip(
            torch.split(hidden_states, lengths),
            lengths,
            cursor.seq_lens_cpu.tolist(),
            pooling_metadata.get_prompt_token_ids_cpu(),
            pooling_metadata.pooling_params,
            pooling_metadata.pooling_states,
            cursor.get_finished_mask(),
            strict=True,
        )
        pooled: list[Tensor | None] = []
        for chunk, length, end, ids, params, state, finished in requests:
            asked = (params.extra_kwargs or {}).get(ROWS)
            rows = torch.isin(ids, self.anchor_ids).nonzero()[:, 0] if asked is None else torch.tensor(asked)
            here = rows[(rows >= end - length) & (rows < end)] - (end - length)
            # An index copies, so what is kept does not hold the whole chunk.
            state.hidden_states_cache.append(chunk[here.to(chunk.device)].float())  # [rows here, D]
            pooled.append(torch.cat(state.hidden_states_cache) if finished else None)
            if finished:
                state.clean()
        return pooled


class EmbeddingInfo(BaseProcessingInfo):
    """An image is Concat(f_s, f_align), ``visual_tokens`` rows; there are no other inputs."""

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": 1}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        return {"image": self.get_hf_config().visual_tokens}


class EmbeddingDummies(BaseDummyInputsBuilder[EmbeddingInfo]):
    """What vLLM measures its memory with."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        token = self.info.get_tokenizer().convert_ids_to_tokens(self.info.get_hf_config().image_token_index)
        return str(token) * mm_counts.get("image", 0)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, Any]) -> dict[str, Any]:
        config, count = self.info.get_hf_config(), mm_counts.get("image", 0)
        return {"image": torch.zeros(count, config.visual_tokens, config.text_config.hidden_size)} if count else {}


class EmbeddingProcessor(BaseMultiModalProcessor[EmbeddingInfo]):
    """Puts as many image tokens as there are rows where the prompt has one."""

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Mapping[str, Any]:
        return {"image_embeds": MultiModalFieldConfig.batched("image")}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        image_id: int = self.info.get_hf_config().image_token_index

        def rows(index: int) -> list[int]:
            images: EmbeddingItems = mm_items.get_items("image", (ImageEmbeddingItems, EmbeddingItems))
            return [image_id] * images.get_feature_size(index)

        return [PromptReplacement(modality="image", target=[image_id], replacement=rows)]


@MULTIMODAL_REGISTRY.register_processor(EmbeddingProcessor, info=EmbeddingInfo, dummy_inputs=EmbeddingDummies)
class AgvasForConditionalGeneration(nn.Module, SupportsMultiModal, SupportsLoRA, SupportsPP, SupportsEagle3):
    """vLLM finds this class by ``architectures`` in config.json."""

    packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={"model.language_model.": "language_model.model.", "lm_head.": "language_model.lm_head."}
    )

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.config = config
        with self._mark_language_model(vllm_config):  # type: ignore[operator]
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config, hf_config=config.text_config, prefix=maybe_prefix(prefix, "language_model")
            )
        self.make_empty_intermediate_tensors = self.language_model.model.make_empty_intermediate_tensors
        self._hands_over_states = False
        if vllm_config.model_config.runner_type == "pooling":
            self.pooler = DispatchPooler({"token_embed": AnchorPooler(config.anchor_token_ids)})

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """For chat completions; our own requests bring token ids."""
        return "<image>"

    def embed_multimodal(self, **kwargs: object) -> Sequence[Tensor]:
        """[2N, D] for each image of the batch."""
        images = kwargs.get("image_embeds")
        return () if images is None else tuple(images)  # type: ignore[arg-type]

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: object,
    ) -> Any:
        """Post-norm states [tokens, D]."""
        if intermediate_tensors is not None:
            inputs_embeds = None
        hidden = self.language_model.model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)
        # For the connector: the states after the norm, which is what anchors are, in place of a layer's output before it.
        return (hidden, [hidden]) if self._hands_over_states and isinstance(hidden, Tensor) else hidden

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """[tokens, V]; the token that stands for an image is never said."""
        logits: Tensor | None = self.language_model.compute_logits(hidden_states)
        if logits is not None:
            logits[:, self.config.image_token_index] = -torch.inf
        return logits

    def set_aux_hidden_state_layers(self, layers: tuple[int, ...]) -> None:
        """vLLM asks for this where the connector is to get states."""
        self._hands_over_states = True

    def get_mm_mapping(self) -> MultiModelKeys:
        return MultiModelKeys.from_string_field(language_model="language_model")

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        loaded: set[str] = AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)
        return loaded
