"""What every component promises, as checks that anyone can run.

A check builds the component, runs every promise, and raises once, listing all that are broken:

    from usam.testing import check_encoder

    check_encoder("whisper", path="openai/whisper-tiny")

As one pytest case a promise:

    @pytest.mark.parametrize("promise", encoder_promises("whisper", arch=TINY), ids=str)
    def test_whisper(promise):
        promise()

A promise that a component cannot keep is named with the reason, and must then really fail:
`expected_failures={"compiles": "its front-end runs in numpy"}`.
"""

from __future__ import annotations

from usam.testing.augmentations import augmentation_promises, check_augmentation
from usam.testing.encoders import check_encoder, encoder_promises
from usam.testing.fusions import check_fusion, fusion_promises
from usam.testing.llm import check_llm, llm_promises
from usam.testing.losses import check_loss, loss_promises
from usam.testing.metrics import check_metric, metric_promises
from usam.testing.projectors import check_projector, projector_promises
from usam.testing.promises import BrokenPromises, Promise, Report
from usam.testing.suites import check_suite, suite_promises

__all__ = [
    "BrokenPromises",
    "Promise",
    "Report",
    "augmentation_promises",
    "check_augmentation",
    "check_encoder",
    "check_fusion",
    "check_llm",
    "check_loss",
    "check_metric",
    "check_projector",
    "check_suite",
    "encoder_promises",
    "fusion_promises",
    "llm_promises",
    "loss_promises",
    "metric_promises",
    "projector_promises",
    "suite_promises",
]
