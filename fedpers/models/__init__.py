"""Models: a trunk, LoRA adapters by PEFT, and the task's head."""

from fedpers.models.adapter_folder import save_adapter
from fedpers.models.backbones import BACKBONES, Backbone
from fedpers.models.build import base_model, build_model
from fedpers.models.personal import PersonalModel
from fedpers.outputs import Outputs

__all__ = [
    "BACKBONES",
    "Backbone",
    "Outputs",
    "PersonalModel",
    "base_model",
    "build_model",
    "save_adapter",
]
