"""Which part of an adapter a parameter belongs to, so that counts can be told apart."""

BLOCKS = ("convadapter_blocks", "bottleneck_blocks")


def component_of(parameter: str) -> str:
    """The component, by a parameter's name in a model.

    "norm", "convolutions", "squeeze-excitation", "mixing" or "scale" of a ConvAdapter; "norm", "down", "up" or
    "scale" of a bottleneck; "other" for a parameter of neither.
    """
    parts = parameter.split(".")
    for blocks in BLOCKS:
        if blocks in parts:
            inner = parts[parts.index(blocks) + 1 :]  # adapter, place, component, ... in a model; as saved, no adapter
            known = ("norm", "convolutions", "squeeze_excitation", "mixing", "scale", "down", "up")
            return next((part.replace("_", "-") for part in inner if part in known), "other")
    return "other"
