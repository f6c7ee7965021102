"Options of models and of commands, checked where they are read."
import difflib, json

from speechllm_course.corpus import find_artifact
from speechllm_course.optimise import ConfigError

class UsageError(ConfigError):
    "Options of a command that contradict each other."
    exit_code = 2

def known_options(values, known, where="model"):
    "The values, if all their keys are known. Raises `ConfigError` with the nearest name."
    for key in values:
        if key not in known: raise ConfigError(f"{where}.{key}: unknown key; did you mean {(difflib.get_close_matches(key, known, 1) or list(known))[0]}?")
    return values

def started_from(start, kind, example, where="start"):
    "The folder of a trained model that a stage continues. Raises `ConfigError` for what is no model of this kind: transformers would start from random weights."
    folder = find_artifact(start)
    try: found = json.loads((folder / "config.json").read_text()).get("model_type")
    except (OSError, ValueError): found = None
    if found != kind: raise ConfigError(f"{where}: {start} {'holds no model' if found is None else f'is a {found}'}; name {example}")
    return folder

def check_numbers(values, names, where):
    "Raises `ConfigError` where one of these options is there and no number."
    for name in names:
        if name in values and (isinstance(values[name], bool) or not isinstance(values[name], (int, float))): raise ConfigError(f"{where}.{name}: {values[name]!r} is not a number (YAML takes 1e-3, without a point, for text)")
