"""Making a method known to PEFT, which takes third-party methods only once its `PeftType` lists them."""

from typing import Any

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType, register_peft_method


def register(name: str, config: type[PeftConfig], model: type[BaseTuner], prefix: str) -> None:
    """Make `get_peft_model`, `PeftModel.from_pretrained`, saving and the rest of PEFT know a method; twice is no harm.

    Args:
        name: as in adapter_config.json, upper case: "SIFT".
        config: its PeftConfig; its `peft_type` is `peft_type(name)`.
        model: its BaseTuner.
        prefix: what the names of its parameters start with: "sift_".
    """
    if peft_type(name) not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name=name.lower(), config_cls=config, model_cls=model, prefix=prefix)


def peft_type(name: str) -> PeftType:
    """The member of PEFT's enumeration, added where it is missing.

    A plain string in PEFT's tables would do for saving and loading, but transformers reads `.value` of it.
    """
    if name in PeftType.__members__:
        return PeftType[name]
    member: Any = str.__new__(PeftType, name)
    member._name_, member._value_ = name, name
    member.__objclass__ = PeftType
    member._sort_order_ = len(PeftType.__members__)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    return member
