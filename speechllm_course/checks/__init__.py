"Exercise checkers: each explains the mistake it found. In a notebook: check(your_function). In a terminal: speechllm check 01."
import importlib, json, pkgutil
from pathlib import Path

def lessons() -> list[str]: # "01", "02", …
    "Which lessons have checkers."
    return sorted(m.name[-2:] for m in pkgutil.iter_modules(__path__) if m.name.startswith("lesson_"))

def checkers(lesson:str) -> dict: # exercise name → checker
    "The checkers of a lesson. Raises `ValueError` for a lesson that has none."
    if lesson[:2] not in lessons(): raise ValueError(f"lesson {lesson!r} has no exercises; choose from {', '.join(lessons())}")
    module = importlib.import_module(f"speechllm_course.checks.lesson_{lesson[:2]}")
    return {name.removeprefix("check_"): f for name, f in vars(module).items() if name.startswith("check_")}

def explain(checker, function) -> str | None: # what is wrong; None when nothing is
    "Run one checker."
    try: checker(function)
    except NotImplementedError: return "not written yet: replace the line that raises NotImplementedError"
    except AssertionError as e: return str(e)
    except Exception as e: return f"it raised {type(e).__name__}: {e}"
    return None

def check(
    function, # your solution; its name says which exercise it solves
):
    "Check one solution in a notebook. Raises `AssertionError` with an explanation."
    for lesson in lessons():
        if function.__name__ in checkers(lesson):
            problem = explain(checkers(lesson)[function.__name__], function)
            assert problem is None, f"{function.__name__}: {problem}"
            print(f"{function.__name__}: all checks passed"); return
    raise ValueError(f"{function.__name__}: no exercise of that name; keep the function's name as it was")

def exercise_cells(notebook:Path) -> list[str]: # sources
    "The cells of a notebook that define what exercises need."
    try: cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError): raise ValueError(f"{notebook}: not a notebook that can be read") from None
    sources = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    return [s.replace("from speechllm_course.checks import check", "") for s in sources if s.startswith("#| exercise")]

def run(lesson:str, notebook:Path|None=None) -> bool: # True when all exercises of the lesson are solved
    "Check a lesson's exercise notebook from the terminal."
    wanted = checkers(lesson)
    if notebook is None:
        found = [p for place in ("exercises", "my-course/exercises", "nbs/exercises", ".") for p in sorted(Path(place).glob(f"{lesson[:2]}_*.ipynb"))]
        if not found: raise ValueError(f"no exercises/{lesson[:2]}_*.ipynb here; copy the course out with: speechllm notebooks my-course")
        notebook = found[0]
    namespace, good = {"check": lambda function: None}, True       # whoever checks in the same cell is checked here, once
    for source in exercise_cells(notebook):
        try: exec(compile(source, str(notebook), "exec"), namespace)
        except Exception as e: print(f"a cell of {notebook} does not run: {type(e).__name__}: {e}"); good = False
    for name, checker in wanted.items():
        problem = explain(checker, namespace[name]) if name in namespace else "missing: keep the function's name as it was"
        if problem and problem.startswith("it raised NameError"): problem += "; only cells that begin with #| exercise are read, so put it into one"
        print(f"{'OK  ' if problem is None else 'FAIL'} {name}" + (f": {problem}" if problem else "")); good &= problem is None
    return good
