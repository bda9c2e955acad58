"""ndif's model actors without a GPU: what the base class does with CUDA is done without it.

Imported by the server alone, by the dotted path in `NDIF_MODEL_IMPORT_PATH`.
"""

import gc
from typing import Any

import ray
from ndif.services.ray.deployments.modeling.base import BaseModelDeployment
from ndif.services.ray.sandbox.model import SandboxModelDeployment
from nnsight.modeling.huggingface import HuggingFaceModel


class CpuModelDeployment(BaseModelDeployment):
    """Loads onto the CPU; the memory that the controller assigns is a number without a device behind it."""

    CACHEABLE = False  # parking moves weights between GPU and CPU

    def load_from_disk(self) -> HuggingFaceModel:
        model = HuggingFaceModel.from_model_key(
            self.model_key, dispatch=True, dtype=self.dtype_name, device="cpu", **self.kwargs
        )
        model._module.requires_grad_(False)
        return model

    def cleanup(self) -> None:
        """The base's, without its CUDA calls."""
        self.kill_switch.clear()
        self.kill_reason = None
        self.execution_ident = None
        self.model.interleaver.cancel()
        gc.collect()


class SandboxedCpuModelDeployment(SandboxModelDeployment, CpuModelDeployment):
    """Runs every request's block in a process of its own.

    ndif runs a trusted request in the actor; without API keys every request would be trusted.
    """

    async def run(self, request: Any) -> None:
        request.trusted = False
        await super().run(request)


@ray.remote(num_cpus=1, max_restarts=-1)
class CpuModelActor(CpuModelDeployment):
    pass


@ray.remote(num_cpus=1, max_restarts=-1)
class SandboxedCpuModelActor(SandboxedCpuModelDeployment):
    pass
