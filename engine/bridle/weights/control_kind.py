"""Which control some weights are, from their configuration or, where there is none, from their keys."""

from pathlib import Path

from bridle.weights.json_file import read_json
from bridle.weights.safetensors_file import read_header


def control_kind(found: Path) -> str:
    """ "T2IAdapter" or "ControlNetModel" for a folder or file, as `locate` gives it. Raises ModelLoadError.

    Anything else that a folder's configuration names counts as ControlNet, whose loader refuses it by name.
    """
    if found.is_dir():
        name = read_json(found / "config.json", f"{found.name}/config.json").get("_class_name")
        return "T2IAdapter" if name == "T2IAdapter" else "ControlNetModel"
    keys = read_header(found, found.name)
    adapter = any(key.removeprefix("adapter.").startswith("body.") for key in keys)
    return "T2IAdapter" if adapter else "ControlNetModel"
