"Options of models, checked where they are read."
import difflib

from speechllm_course.optimise import ConfigError

def known_options(values, known, where="model"):
    "The values, if all their keys are known. Raises `ConfigError` with the nearest name."
    for key in values:
        if key not in known: raise ConfigError(f"{where}.{key}: unknown key; did you mean {(difflib.get_close_matches(key, known, 1) or list(known))[0]}?")
    return values
