"""vLLM's Transformers backend runs usam's models; this file lets the Auto classes know them in its processes."""

from vllm.model_executor.models.transformers import TransformersMultiModalForCausalLM

import usam.model.checkpoint  # noqa: F401  registers them

__all__ = ["TransformersMultiModalForCausalLM"]
