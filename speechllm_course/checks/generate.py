"Make nbs/exercises from nbs/solutions: python -m speechllm_course.checks.generate"
import json, re
from pathlib import Path

STUB = 'raise NotImplementedError("your turn")'

def blank(source:str) -> str:
    "Replace what stands between the SOLUTION markers by a line to be replaced."
    return re.sub(r"^( *)# SOLUTION\n.*?^ *# END SOLUTION$", lambda m: m[1] + STUB, source, flags=re.M | re.S)

def exercise_notebook(solution:dict) -> dict:
    "The notebook that learners get: answers blanked, no outputs."
    cells = []
    for cell in solution["cells"]:
        cell = json.loads(json.dumps(cell))
        if cell["cell_type"] == "code":
            cell.update(source=blank("".join(cell["source"])).splitlines(keepends=True), outputs=[], execution_count=None)
        cells.append(cell)
    return {**solution, "cells": cells}

def generate(nbs:Path) -> dict: # path → text
    "Every exercise notebook and what it should hold."
    made = {}
    for path in sorted((nbs / "solutions").glob("*.ipynb")):
        notebook = exercise_notebook(json.loads(path.read_text(encoding="utf-8")))
        made[nbs / "exercises" / path.name] = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    return made

if __name__ == "__main__":
    for path, text in generate(Path(__file__).parent.parent.parent / "nbs").items():
        path.parent.mkdir(exist_ok=True); path.write_text(text, encoding="utf-8"); print(path.name)
