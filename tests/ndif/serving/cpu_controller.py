"""ndif's controller, on the nnsight that we pin.

Imported by the server alone, by the dotted path in `NDIF_CONTROLLER_IMPORT_PATH`.
"""

from typing import Any

import ray
from ndif.services.ray.deployments.controller.controller import _ControllerActor
from nnsight.modeling.mixins.remotable import CheckpointInfo, Remotable


class _Controller(_ControllerActor):
    """ndif 0.1.2 asks nnsight about a checkpoint with a keyword that 0.8.1 reads from the model's key instead."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        describe, max_tp_size = Remotable.describe_checkpoint, Remotable.max_tp_size

        def describe_checkpoint(model_key: str, dtype: str, trust_remote_code: bool = False) -> CheckpointInfo:
            return describe(model_key, dtype)

        def tensor_parallel_size(model_key: str, trust_remote_code: bool = False) -> int | None:
            return max_tp_size(model_key)

        Remotable.describe_checkpoint = staticmethod(describe_checkpoint)
        Remotable.max_tp_size = staticmethod(tensor_parallel_size)
        super().__init__(*args, **kwargs)


@ray.remote(num_cpus=1, num_gpus=0, max_restarts=-1, resources={"head": 1})
class Controller(_Controller):
    pass
